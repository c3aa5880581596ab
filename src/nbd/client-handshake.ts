/** The client's side of the handshake: fixed newstyle, with what an older server does not know left out. Slow path. */

import { BlksnapError } from '../util/errors.ts';
import type { ErrorCode } from '../util/errors.ts';
import { KIB, MIB } from '../util/units.ts';
import {
  EXPORT_NAME_PADDING,
  FLAG_FIXED_NEWSTYLE,
  FLAG_NO_ZEROES,
  INFO_BLOCK_SIZE,
  INFO_EXPORT,
  INIT_MAGIC,
  isErrorReply,
  OPT_ABORT,
  OPT_EXPORT_NAME,
  OPT_EXTENDED_HEADERS,
  OPT_GO,
  OPT_LIST,
  OPT_SET_META_CONTEXT,
  OPT_STRUCTURED_REPLY,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  PAYLOAD_LIMIT,
  REP_ACK,
  REP_ERR_POLICY,
  REP_ERR_SHUTDOWN,
  REP_ERR_TLS_REQD,
  REP_ERR_UNKNOWN,
  REP_ERR_UNSUP,
  REP_INFO,
  REP_META_CONTEXT,
  REP_SERVER,
} from './protocol.ts';
import type { HeaderStyle } from './protocol.ts';
import { Message, WIRE_LIMIT } from './wire.ts';
import type { Wire } from './wire.ts';

/** What the server agreed to. */
export interface ServerExport {
  readonly size: number;
  readonly transmissionFlags: number;
  readonly style: HeaderStyle;
  readonly minimumBlock: number;
  readonly preferredBlock: number;
  readonly payloadLimit: number;
  /** Ids of the contexts by name. */
  readonly contexts: ReadonlyMap<string, number>;
}

export interface ListedExport {
  readonly name: string;
  readonly description: string;
}

/** Memory that a list of exports may take, and roughly what each takes beside its words. */
const LIST_LIMIT = 16 * MIB;
const LISTED_BYTES = 200;

interface OptionReply {
  readonly type: number;
  readonly data: Uint8Array;
  readonly view: DataView;
}

function violation(what: string): BlksnapError {
  return new BlksnapError('EPROTO', `The NBD server broke the protocol: ${what}`);
}

const decoder = new TextDecoder();

/** The server's refusal of an option as an error; its own words, where it sent some. */
function refusal(reply: OptionReply, action: string): BlksnapError {
  const code: ErrorCode =
    reply.type === REP_ERR_UNKNOWN
      ? 'ENOENT'
      : reply.type === REP_ERR_POLICY
        ? 'EACCES'
        : reply.type === REP_ERR_SHUTDOWN
          ? 'ESHUTDOWN'
          : reply.type === REP_ERR_UNSUP || reply.type === REP_ERR_TLS_REQD
            ? 'EOPNOTSUPP'
            : 'EPROTO';
  const words = decoder.decode(reply.data.subarray(0, 256));
  const tls = reply.type === REP_ERR_TLS_REQD ? 'the server wants TLS; connect by nbds:// or nbds+unix://' : '';
  return new BlksnapError(
    code,
    `Cannot ${action}: ${tls || words || `the server refused (0x${reply.type.toString(16)})`}`,
  );
}

export interface Wanted {
  readonly exportName: string;
  readonly contexts: readonly string[];
  readonly newestStyle: HeaderStyle;
  /** Those of a greeting that was read already, before TLS; null without TLS. */
  readonly flags: number | null;
}

/** Agrees on an export and enters transmission. Errors: ENOENT no such export; EPROTO; EOPNOTSUPP. */
export async function join(wire: Wire, wanted: Wanted): Promise<ServerExport> {
  const { exportName, flags } = wanted;
  const handshake = await ClientHandshake.open(wire, flags);
  return handshake.fixed ? handshake.go(wanted) : handshake.exportName(exportName, 'simple', new Map());
}

/** The names that the server is ready to tell. Errors: EACCES, EOPNOTSUPP when it is not. */
export async function listServerExports(wire: Wire, flags: number | null): Promise<ListedExport[]> {
  const handshake = await ClientHandshake.open(wire, flags);
  if (!handshake.fixed)
    throw new BlksnapError('EOPNOTSUPP', 'Cannot list exports: the server knows only the oldest handshake');
  return handshake.list();
}

class ClientHandshake {
  readonly #wire: Wire;
  readonly fixed: boolean;
  readonly #noZeroes: boolean;

  /** `flags`: as of `Wanted`. */
  static async open(wire: Wire, flags: number | null): Promise<ClientHandshake> {
    return flags === null ? await ClientHandshake.greet(wire) : new ClientHandshake(wire, flags);
  }

  private static async greet(wire: Wire): Promise<ClientHandshake> {
    await wire.need(16);
    if (wire.u32() !== INIT_MAGIC[0] || wire.u32() !== INIT_MAGIC[1])
      throw violation('it does not greet as an NBD server');
    if (wire.u32() !== OPTION_MAGIC[0] || wire.u32() !== OPTION_MAGIC[1]) {
      throw new BlksnapError(
        'EOPNOTSUPP',
        'Cannot use this NBD server: it speaks the oldstyle protocol of before 2011',
      );
    }
    await wire.need(2);
    const flags = wire.u16() & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
    await wire.put(new Message().u32(flags).bytes);
    return new ClientHandshake(wire, flags);
  }

  private constructor(wire: Wire, flags: number) {
    this.#wire = wire;
    this.fixed = (flags & FLAG_FIXED_NEWSTYLE) !== 0;
    this.#noZeroes = (flags & FLAG_NO_ZEROES) !== 0;
  }

  async go({ exportName, contexts: names, newestStyle }: Wanted): Promise<ServerExport> {
    const style = await this.#chooseStyle(newestStyle);
    const contexts =
      style === 'simple' || names.length === 0 ? new Map<string, number>() : await this.#setContexts(exportName, names);
    await this.#send(OPT_GO, new Message().counted(exportName).u16(1).u16(INFO_BLOCK_SIZE));
    const info = {
      size: -1,
      transmissionFlags: 0,
      minimumBlock: 1,
      preferredBlock: 4 * KIB,
      payloadLimit: PAYLOAD_LIMIT,
    };
    for (;;) {
      const reply = await this.#reply(OPT_GO);
      if (reply.type === REP_ERR_UNSUP && style !== 'extended') return this.exportName(exportName, style, contexts);
      if (isErrorReply(reply.type)) throw refusal(reply, `open NBD export "${exportName}"`);
      if (reply.type === REP_ACK) break;
      if (reply.type === REP_INFO) readInfo(reply, info);
    }
    if (info.size < 0) throw violation('it accepted the export without telling its size');
    return { ...info, style, contexts };
  }

  /** The oldest way in: a server that does not like the name just closes the connection. */
  async exportName(name: string, style: HeaderStyle, contexts: ReadonlyMap<string, number>): Promise<ServerExport> {
    await this.#send(OPT_EXPORT_NAME, new Message().text(name));
    if (!(await this.#wire.need(10, true))) {
      throw new BlksnapError('ENOENT', `Cannot open NBD export "${name}": the server closed the connection`);
    }
    const size = this.#wire.u64();
    const transmissionFlags = this.#wire.u16();
    if (!this.#noZeroes) await this.#wire.skip(EXPORT_NAME_PADDING);
    return {
      size,
      transmissionFlags,
      style,
      contexts,
      minimumBlock: 1,
      preferredBlock: 4 * KIB,
      payloadLimit: PAYLOAD_LIMIT,
    };
  }

  async list(): Promise<ListedExport[]> {
    await this.#send(OPT_LIST, new Message());
    const listed: ListedExport[] = [];
    for (let bytes = 0; ;) {
      const reply = await this.#reply(OPT_LIST);
      if (isErrorReply(reply.type)) throw refusal(reply, 'list the exports');
      if (reply.type === REP_ACK) break;
      if (reply.type !== REP_SERVER) continue;
      const length = reply.data.length >= 4 ? reply.view.getUint32(0) : Infinity;
      if (length > reply.data.length - 4) throw violation('a listed name is longer than its message');
      bytes += LISTED_BYTES + reply.data.length;
      if (bytes > LIST_LIMIT) throw violation(`a list of ${listed.length} exports and more`);
      listed.push({
        name: decoder.decode(reply.data.subarray(4, 4 + length)),
        description: decoder.decode(reply.data.subarray(4 + length)),
      });
    }
    await this.#send(OPT_ABORT, new Message());
    return listed;
  }

  async #chooseStyle(newest: HeaderStyle): Promise<HeaderStyle> {
    if (newest === 'extended' && (await this.#accepted(OPT_EXTENDED_HEADERS))) return 'extended';
    return newest !== 'simple' && (await this.#accepted(OPT_STRUCTURED_REPLY)) ? 'structured' : 'simple';
  }

  async #accepted(option: number): Promise<boolean> {
    await this.#send(option, new Message());
    return (await this.#reply(option)).type === REP_ACK;
  }

  async #setContexts(exportName: string, wanted: readonly string[]): Promise<Map<string, number>> {
    const message = new Message().counted(exportName).u32(wanted.length);
    for (const name of wanted) message.counted(name);
    await this.#send(OPT_SET_META_CONTEXT, message);
    const contexts = new Map<string, number>();
    for (;;) {
      const reply = await this.#reply(OPT_SET_META_CONTEXT);
      // Whatever is wrong with the export's name, GO will say it better.
      if (isErrorReply(reply.type)) return new Map();
      if (reply.type === REP_ACK) return contexts;
      if (reply.type !== REP_META_CONTEXT || reply.data.length < 4) throw violation('a malformed metadata context');
      const name = decoder.decode(reply.data.subarray(4));
      if (wanted.includes(name)) contexts.set(name, reply.view.getUint32(0));
    }
  }

  async #send(option: number, message: Message): Promise<void> {
    const { bytes } = message;
    await this.#wire.put(
      new Message().u32(OPTION_MAGIC[0]).u32(OPTION_MAGIC[1]).u32(option).u32(bytes.length).raw(bytes).bytes,
    );
    await this.#wire.flush();
  }

  async #reply(option: number): Promise<OptionReply> {
    const wire = this.#wire;
    await wire.need(20);
    if (wire.u32() !== OPTION_REPLY_MAGIC[0] || wire.u32() !== OPTION_REPLY_MAGIC[1]) {
      throw violation('wrong magic number in an option reply');
    }
    const answered = wire.u32();
    if (answered !== option) throw violation(`it answered option ${answered} when ${option} was asked`);
    const type = wire.u32();
    const length = wire.u32();
    if (length > WIRE_LIMIT) throw violation(`an option reply of ${length} bytes`);
    await wire.need(length);
    const data = wire.bytes(length);
    return { type, data, view: new DataView(data.buffer) };
  }
}

/** Takes what is known of the server's information; the rest may be ignored. */
function readInfo(
  { data, view }: OptionReply,
  info: { size: number; transmissionFlags: number; minimumBlock: number; preferredBlock: number; payloadLimit: number },
): void {
  const type = data.length >= 2 ? view.getUint16(0) : -1;
  if (type === INFO_EXPORT && data.length === 12) {
    info.size = view.getUint32(2) * 2 ** 32 + view.getUint32(6);
    info.transmissionFlags = view.getUint16(10);
  } else if (type === INFO_BLOCK_SIZE && data.length === 14) {
    info.minimumBlock = view.getUint32(2);
    info.preferredBlock = view.getUint32(6);
    info.payloadLimit = Math.min(view.getUint32(10), PAYLOAD_LIMIT);
    const { minimumBlock: minimum, preferredBlock: preferred } = info;
    if (
      !isPowerOfTwo(minimum) ||
      !isPowerOfTwo(preferred) ||
      minimum > preferred ||
      minimum > 65536 ||
      info.payloadLimit < preferred
    ) {
      throw violation(`block sizes ${minimum}, ${preferred}, ${info.payloadLimit}`);
    }
  }
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && (value & (value - 1)) === 0;
}
