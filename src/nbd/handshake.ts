/** The server's side of the fixed newstyle handshake. Slow path.
 *
 *  Whatever a client sends, `negotiate` ends with a session, with null (the client left in an
 *  orderly way), or with an error that says why the connection must be dropped. Options longer
 *  than a message buffer are skipped and refused; absurd ones end the connection. */

import type { Arena } from '../io/arena.ts';
import { BlksnapError } from '../util/errors.ts';
import { MIB } from '../util/units.ts';
import { transmissionFlags } from './commands.ts';
import { listContexts, selectContexts } from './contexts.ts';
import type { SelectedContext } from './contexts.ts';
import type { ExportTable, NbdExport } from './export.ts';
import { blockSizes } from './limits.ts';
import { decodeContextQuery, decodeInfoQuery, decodeText, InvalidOption } from './option.ts';
import {
  EXPORT_NAME_PADDING,
  FLAG_FIXED_NEWSTYLE,
  FLAG_NO_ZEROES,
  INFO_BLOCK_SIZE,
  INFO_DESCRIPTION,
  INFO_EXPORT,
  INFO_NAME,
  INIT_MAGIC,
  OPT_ABORT,
  OPT_EXPORT_NAME,
  OPT_EXTENDED_HEADERS,
  OPT_GO,
  OPT_INFO,
  OPT_LIST,
  OPT_LIST_META_CONTEXT,
  OPT_SET_META_CONTEXT,
  OPT_STRUCTURED_REPLY,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  REP_ACK,
  REP_ERR_EXT_HEADER_REQD,
  REP_ERR_INVALID,
  REP_ERR_TOO_BIG,
  REP_ERR_UNKNOWN,
  REP_ERR_UNSUP,
  REP_INFO,
  REP_META_CONTEXT,
  REP_SERVER,
} from './protocol.ts';
import type { HeaderStyle } from './protocol.ts';
import { Message, WIRE_LIMIT } from './wire.ts';
import type { Wire } from './wire.ts';

/** Options longer than this are not skipped but end the connection. */
const OPTION_LIMIT = MIB;
/** A client that needs more options than this wants something else. */
const OPTION_COUNT_LIMIT = 1024;
const CONTEXT_LIMIT = 64;

/** What client and server agreed on. */
export interface Session {
  readonly served: NbdExport;
  readonly style: HeaderStyle;
  readonly contexts: readonly SelectedContext[];
  readonly transmissionFlags: number;
}

/** Where a handshake is. Plain data: it goes on in another server, on another thread. */
export interface HandshakeState {
  readonly noZeroes: boolean;
  readonly style: HeaderStyle;
  /** The export that contexts were selected for, and their names. */
  readonly contextsOf: string | null;
  readonly contextNames: readonly string[];
  /** Options so far. */
  readonly options: number;
}

/** After the greeting, and nothing else. */
export function freshState(noZeroes: boolean): HandshakeState {
  return { noZeroes, style: 'simple', contextsOf: null, contextNames: [], options: 0 };
}

/** The client named an export that another server has. */
export interface Departure {
  readonly exportName: string;
  readonly state: HandshakeState;
  /** The option that named it, as it came: to be read again there. */
  readonly option: Uint8Array;
}

/** Goes on from `state` when the handshake began in another server. Errors: EPROTO, or the stream's. */
export function negotiate(
  wire: Wire,
  exports: ExportTable,
  arena: Arena,
  state: HandshakeState | null = null,
): Promise<Session | Departure | null> {
  const handshake = new Handshake(wire, exports, arena);
  if (state === null) return handshake.run();
  handshake.resume(state);
  return handshake.options();
}

class Handshake {
  readonly #wire: Wire;
  readonly #exports: ExportTable;
  readonly #arena: Arena;
  #noZeroes = false;
  #style: HeaderStyle = 'simple';
  /** The export that contexts were selected for, and which. */
  #contextsOf: NbdExport | undefined;
  #contexts: readonly SelectedContext[] = [];
  /** The names of both, also where the export is elsewhere. */
  #selection: Pick<HandshakeState, 'contextsOf' | 'contextNames'> = { contextsOf: null, contextNames: [] };
  #options = 0;

  constructor(wire: Wire, exports: ExportTable, arena: Arena) {
    this.#wire = wire;
    this.#exports = exports;
    this.#arena = arena;
  }

  resume({ noZeroes, style, contextsOf, contextNames, options }: HandshakeState): void {
    this.#noZeroes = noZeroes;
    this.#style = style;
    this.#options = options;
    this.#selection = { contextsOf, contextNames };
    const served = contextsOf === null ? undefined : this.#exports.find(contextsOf);
    if (served !== undefined) this.#setContexts(served, selectContexts(served, contextNames));
  }

  async run(): Promise<Session | Departure | null> {
    const wire = this.#wire;
    await wire.put(
      new Message()
        .u32(INIT_MAGIC[0])
        .u32(INIT_MAGIC[1])
        .u32(OPTION_MAGIC[0])
        .u32(OPTION_MAGIC[1])
        .u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).bytes,
    );
    await wire.flush();
    if (!(await wire.need(4, true))) return null;
    const flags = wire.u32();
    if ((flags & ~(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)) !== 0) {
      throw new BlksnapError('EPROTO', `The client set unknown handshake flags 0x${flags.toString(16)}`);
    }
    this.#noZeroes = (flags & FLAG_NO_ZEROES) !== 0;
    return await this.options();
  }

  async options(): Promise<Session | Departure | null> {
    const wire = this.#wire;
    for (; this.#options < OPTION_COUNT_LIMIT; this.#options++) {
      if (!(await wire.need(16, true))) return null;
      const session = await this.#option();
      await wire.flush();
      if (session !== undefined) return session;
    }
    throw new BlksnapError('EPROTO', `The client sent ${OPTION_COUNT_LIMIT} options and chose no export`);
  }

  /** One option; undefined when the next is to follow. */
  async #option(): Promise<Session | Departure | null | undefined> {
    const wire = this.#wire;
    if (wire.u32() !== OPTION_MAGIC[0] || wire.u32() !== OPTION_MAGIC[1]) {
      throw new BlksnapError('EPROTO', 'The client sent no option where one was due: wrong magic number');
    }
    const option = wire.u32();
    const length = wire.u32();
    if (length > OPTION_LIMIT) {
      throw new BlksnapError(
        'EPROTO',
        `The client sent option ${option} with ${length} bytes, want at most ${OPTION_LIMIT}`,
      );
    }
    if (length > WIRE_LIMIT) {
      await wire.skip(length);
      if (option === OPT_EXPORT_NAME)
        throw new BlksnapError('EPROTO', `The client sent an export name of ${length} bytes`);
      return this.#refuse(option, REP_ERR_TOO_BIG, `more than ${WIRE_LIMIT} bytes`);
    }
    await wire.need(length);
    const data = wire.bytes(length);
    try {
      return this.#departure(option, data) ?? (await this.#answer(option, data));
    } catch (cause) {
      if (!(cause instanceof InvalidOption) || option === OPT_EXPORT_NAME) throw cause;
      return this.#refuse(option, REP_ERR_INVALID, cause.message);
    }
  }

  /** Null unless the option names an export that is elsewhere. */
  #departure(option: number, data: Uint8Array): Departure | null {
    const exportName = exportNamed(option, data);
    if (exportName === null || this.#exports.find(exportName) !== undefined) return null;
    if (this.#exports.isElsewhere?.(exportName) !== true) return null;
    const message = new Message().u32(OPTION_MAGIC[0]).u32(OPTION_MAGIC[1]).u32(option).u32(data.length).raw(data);
    const state = { noZeroes: this.#noZeroes, style: this.#style, options: this.#options, ...this.#selection };
    return { exportName, state, option: message.bytes };
  }

  async #answer(option: number, data: Uint8Array): Promise<Session | null | undefined> {
    switch (option) {
      case OPT_EXPORT_NAME:
        return this.#exportName(data);
      case OPT_ABORT:
        await this.#reply(option, REP_ACK);
        return null;
      case OPT_LIST:
        return this.#list(data);
      case OPT_INFO:
      case OPT_GO:
        return this.#info(option, data);
      case OPT_STRUCTURED_REPLY:
        expectNoData(data);
        if (this.#style === 'extended')
          return this.#refuse(option, REP_ERR_EXT_HEADER_REQD, 'extended headers are in use');
        this.#style = 'structured';
        return this.#reply(option, REP_ACK);
      case OPT_EXTENDED_HEADERS:
        expectNoData(data);
        this.#style = 'extended';
        return this.#reply(option, REP_ACK);
      case OPT_LIST_META_CONTEXT:
      case OPT_SET_META_CONTEXT:
        return this.#metaContext(option, data);
      default:
        return this.#refuse(option, REP_ERR_UNSUP, `option ${option} is not supported`);
    }
  }

  async #reply(option: number, type: number, data?: Message): Promise<undefined> {
    const bytes = data?.bytes ?? new Uint8Array(0);
    await this.#wire.put(
      new Message()
        .u32(OPTION_REPLY_MAGIC[0])
        .u32(OPTION_REPLY_MAGIC[1])
        .u32(option)
        .u32(type)
        .u32(bytes.length)
        .raw(bytes).bytes,
    );
  }

  #refuse(option: number, type: number, reason: string): Promise<undefined> {
    return this.#reply(option, type, new Message().text(reason));
  }

  async #exportName(data: Uint8Array): Promise<Session> {
    const name = decodeText(data, 'the export name');
    const served = this.#exports.find(name);
    // The protocol has no error reply to this option.
    if (served === undefined) throw new BlksnapError('ENOENT', `The client asked for the unknown export "${name}"`);
    if (this.#style === 'extended')
      throw new BlksnapError('EPROTO', 'The client used EXPORT_NAME with extended headers');
    const session = this.#session(served);
    const message = new Message().u64(served.device.size).u16(session.transmissionFlags);
    if (!this.#noZeroes) message.raw(new Uint8Array(EXPORT_NAME_PADDING));
    await this.#wire.put(message.bytes);
    return session;
  }

  async #list(data: Uint8Array): Promise<undefined> {
    expectNoData(data);
    for (const served of this.#exports.list()) {
      await this.#reply(OPT_LIST, REP_SERVER, new Message().counted(served.name).text(served.description));
    }
    return this.#reply(OPT_LIST, REP_ACK);
  }

  async #info(option: number, data: Uint8Array): Promise<Session | undefined> {
    const { exportName, wanted } = decodeInfoQuery(data);
    const served = this.#exports.find(exportName);
    if (served === undefined) return this.#refuse(option, REP_ERR_UNKNOWN, `no export "${exportName}"`);
    const session = this.#session(served);
    const { device } = served;
    await this.#reply(option, REP_INFO, new Message().u16(INFO_EXPORT).u64(device.size).u16(session.transmissionFlags));
    if (wanted.has(INFO_NAME)) await this.#reply(option, REP_INFO, new Message().u16(INFO_NAME).text(served.name));
    if (wanted.has(INFO_DESCRIPTION)) {
      await this.#reply(option, REP_INFO, new Message().u16(INFO_DESCRIPTION).text(served.description));
    }
    if (wanted.has(INFO_BLOCK_SIZE)) {
      const { minimum, preferred, maximum } = blockSizes(device, this.#arena);
      await this.#reply(option, REP_INFO, new Message().u16(INFO_BLOCK_SIZE).u32(minimum).u32(preferred).u32(maximum));
    }
    await this.#reply(option, REP_ACK);
    return option === OPT_GO ? session : undefined;
  }

  async #metaContext(option: number, data: Uint8Array): Promise<undefined> {
    if (option === OPT_SET_META_CONTEXT) this.#setContexts(undefined, []);
    const { exportName, queries } = decodeContextQuery(data);
    if (this.#style === 'simple')
      return this.#refuse(option, REP_ERR_INVALID, 'structured replies were not negotiated');
    const served = this.#exports.find(exportName);
    if (served === undefined) return this.#refuse(option, REP_ERR_UNKNOWN, `no export "${exportName}"`);
    if (option === OPT_LIST_META_CONTEXT) {
      for (const context of listContexts(served, queries)) {
        await this.#reply(option, REP_META_CONTEXT, new Message().u32(0).text(context.name));
      }
      return this.#reply(option, REP_ACK);
    }
    const selected = selectContexts(served, queries);
    if (selected.length > CONTEXT_LIMIT)
      return this.#refuse(option, REP_ERR_TOO_BIG, `more than ${CONTEXT_LIMIT} contexts`);
    this.#setContexts(served, selected);
    for (const { id, context } of selected) {
      await this.#reply(option, REP_META_CONTEXT, new Message().u32(id).text(context.name));
    }
    return this.#reply(option, REP_ACK);
  }

  #setContexts(served: NbdExport | undefined, contexts: readonly SelectedContext[]): void {
    this.#contextsOf = served;
    this.#contexts = contexts;
    this.#selection = { contextsOf: served?.name ?? null, contextNames: contexts.map(({ context }) => context.name) };
  }

  #session(served: NbdExport): Session {
    const contexts = this.#contextsOf === served && this.#style !== 'simple' ? this.#contexts : [];
    const flags = transmissionFlags(served.device, this.#style, contexts.length > 0);
    return { served, style: this.#style, contexts, transmissionFlags: flags };
  }
}

/** The export that an option is about; null where it is about none. Errors: InvalidOption. */
function exportNamed(option: number, data: Uint8Array): string | null {
  switch (option) {
    case OPT_EXPORT_NAME:
      return decodeText(data, 'the export name');
    case OPT_INFO:
    case OPT_GO:
      return decodeInfoQuery(data).exportName;
    case OPT_LIST_META_CONTEXT:
    case OPT_SET_META_CONTEXT:
      return decodeContextQuery(data).exportName;
    default:
      return null;
  }
}

function expectNoData(data: Uint8Array): void {
  if (data.length > 0) throw new InvalidOption(`${data.length} bytes of data where none belong`);
}
