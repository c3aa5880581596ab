/** An export of any NBD server as a block device, with what the server can tell about its blocks.
 *
 *  Bios longer than the server takes are cut into requests; there is no limit on bios under way.
 *  When the connection breaks, every bio under way and every later one ends with EIO, and
 *  `failure` says why. */

import fs from 'node:fs';
import { DISCARD, FAST_ZERO, FLUSH, FUA, NO_HOLE, rangeError, READ, WRITE, WRITE_ZEROES } from '../block/bio.ts';
import type { Bio } from '../block/bio.ts';
import { pushExtent } from '../block/device.ts';
import type { BlockDevice, Capabilities, Extent } from '../block/device.ts';
import type { Completion, Reactor, Stream } from '../io/reactor.ts';
import { unreachable } from '../util/assert.ts';
import { cancellation, checkGoingOn, whenAborted } from '../util/cancel.ts';
import { BlksnapError, ERRNO, errnoError, toBlksnapError } from '../util/errors.ts';
import { alignDown, GIB, MIB } from '../util/units.ts';
import { ClientConnection } from './client-connection.ts';
import type { ClientConnectionHost } from './client-connection.ts';
import { join, listServerExports } from './client-handshake.ts';
import type { ListedExport, ServerExport } from './client-handshake.ts';
import type { ClientRequest, RequestOwner } from './client-request.ts';
import { decodeStatus } from './client-status.ts';
import type { StatusExtent } from './export.ts';
import {
  BASE_ALLOCATION,
  BLOCK_STATUS_PAYLOAD,
  CMD_BLOCK_STATUS,
  CMD_FLAG_FAST_ZERO,
  CMD_FLAG_FUA,
  CMD_FLAG_NO_HOLE,
  CMD_FLUSH,
  CMD_READ,
  CMD_TRIM,
  CMD_WRITE,
  CMD_WRITE_ZEROES,
  READ_ONLY,
  ROTATIONAL,
  SEND_FAST_ZERO,
  SEND_FLUSH,
  SEND_FUA,
  SEND_TRIM,
  SEND_WRITE_ZEROES,
  STATE_HOLE,
  STATE_ZERO,
} from './protocol.ts';
import type { HeaderStyle } from './protocol.ts';
import { connectTls } from './tls-connect.ts';
import { loadClientCredentials, MIN_TLS_VERSION } from './tls-credentials.ts';
import type { ClientCredentials } from './tls-credentials.ts';
import { formatNbdUri } from './uri.ts';
import type { NbdUri } from './uri.ts';
import { Wire } from './wire.ts';

const HANDSHAKE_LIMIT_MS = 30_000;
const SECTOR = 512;
/** Longest request without data where lengths are 32 bits wide; and where they are not. */
const COMPACT_LENGTH = GIB;
const EXTENDED_LENGTH = 1024 * GIB;
/** Requests with data are no longer than this, so that they overlap. */
const DATA_LENGTH = 4 * MIB;

export interface NbdClientOptions extends NbdUri {
  readonly reactor: Reactor;
  /** For a URI with TLS that names no files of its own. Default: whom the system trusts, and no proof of our own. */
  readonly credentials?: ClientCredentials | undefined;
  /** Metadata contexts to ask for; what the server does not have is left out. Default: base:allocation. */
  readonly contexts?: readonly string[];
  /** The newest headers to ask for; a server that knows only older ones is met there. Default: extended. */
  readonly newestStyle?: HeaderStyle;
  /** Aborted: the connection ends, and what is under way with it. */
  readonly signal?: AbortSignal | undefined;
}

/** A bio on its way: cut into requests, one after the other. */
class Transfer implements RequestOwner {
  readonly #client: NbdClient;
  bio!: Bio;
  issued = 0;
  pending = 0;
  errno = 0;
  next: Transfer | null = null;

  constructor(client: NbdClient) {
    this.#client = client;
  }

  requestEnded(request: ClientRequest): void {
    if (this.errno === 0) this.errno = request.errno;
    this.pending--;
    this.#client.transferProgress(this);
  }
}

export class NbdClient implements BlockDevice, ClientConnectionHost {
  readonly name: string;
  readonly size: number;
  readonly logicalBlockSize: number;
  readonly physicalBlockSize: number;
  readonly readOnly: boolean;
  readonly capabilities: Capabilities;
  /** Names of the metadata contexts that the server agreed to. */
  readonly contexts: readonly string[];
  readonly #server: ServerExport;
  readonly #dataLimit: number;
  readonly #effectLimit: number;
  readonly #connection: ClientConnection;
  readonly #ended: Promise<void>;
  #end!: () => void;
  #closing = false;

  /** Transfers that have not issued all of their requests, in order. */
  #head: Transfer | null = null;
  #tail: Transfer | null = null;
  #free: Transfer | null = null;
  /** Block status requests that wait for room. */
  readonly #roomWaiters: Array<() => void> = [];

  /** Errors: ENOENT (no such export, or socket), ECONNREFUSED, EPROTO, EINVAL for a size that is no
   *  whole number of blocks, ETIMEDOUT, … */
  static async connect(options: NbdClientOptions): Promise<NbdClient> {
    const { reactor, exportName, contexts = [BASE_ALLOCATION], newestStyle = 'extended' } = options;
    const client = await shakeHands(reactor, options, async ({ wire, stream, flags }) => {
      const server = await join(wire, { exportName, contexts, newestStyle, flags });
      wire.checkOpen();
      return new NbdClient(reactor, stream, options, server, wire.received);
    });
    client.#endWhenAborted(options.signal);
    return client;
  }

  #endWhenAborted(signal: AbortSignal | undefined): void {
    const stopListening = whenAborted(signal, () => this.#connection.fail(cancellation(signal)));
    void this.#ended.then(stopListening);
  }

  private constructor(reactor: Reactor, stream: Stream, uri: NbdUri, server: ServerExport, early: Uint8Array) {
    const { transmissionFlags: flags, size } = server;
    const name = formatNbdUri(uri);
    this.logicalBlockSize = Math.max(SECTOR, server.minimumBlock);
    if (!Number.isSafeInteger(size) || size === 0 || size % this.logicalBlockSize !== 0) {
      throw new BlksnapError(
        'EINVAL',
        `Cannot use ${name}: size ${size} is not a multiple of ${this.logicalBlockSize}`,
      );
    }
    this.name = name;
    this.size = size;
    this.physicalBlockSize = Math.max(server.preferredBlock, this.logicalBlockSize);
    this.readOnly = (flags & READ_ONLY) !== 0;
    this.capabilities = {
      flush: (flags & SEND_FLUSH) !== 0,
      fua: (flags & SEND_FUA) !== 0,
      discard: (flags & SEND_TRIM) !== 0 && !this.readOnly,
      writeZeroes: (flags & SEND_WRITE_ZEROES) !== 0 && !this.readOnly,
      fastZero: (flags & SEND_FAST_ZERO) !== 0 && !this.readOnly,
      rotational: (flags & ROTATIONAL) !== 0,
    };
    this.contexts = [...server.contexts.keys()];
    this.#server = server;
    this.#dataLimit = alignDown(Math.min(server.payloadLimit, DATA_LENGTH), this.logicalBlockSize);
    this.#effectLimit = server.style === 'extended' ? EXTENDED_LENGTH : COMPACT_LENGTH;
    this.#ended = new Promise((resolve) => (this.#end = resolve));
    this.#connection = new ClientConnection(reactor, stream, server.style, early, this);
    this.#connection.start();
  }

  /** Why the connection broke, once it did. */
  get failure(): BlksnapError | undefined {
    return this.#closing ? undefined : this.#connection.failure;
  }

  submit(bio: Bio): void {
    const refused = this.#refusal(bio);
    if (refused !== 0) {
      bio.end(refused);
      return;
    }
    const transfer = this.#free ?? new Transfer(this);
    this.#free = transfer.next;
    transfer.bio = bio;
    transfer.issued = transfer.pending = transfer.errno = 0;
    transfer.next = null;
    if (this.#tail === null) this.#head = transfer;
    else this.#tail.next = transfer;
    this.#tail = transfer;
    this.#issue();
  }

  #refusal(bio: Bio): number {
    if (this.#connection.failure !== undefined || this.#closing) return ERRNO.EIO;
    const { capabilities } = this;
    if ((bio.flags & FUA) !== 0 && !capabilities.fua) return ERRNO.EOPNOTSUPP;
    if ((bio.flags & FAST_ZERO) !== 0 && !capabilities.fastZero) return ERRNO.EOPNOTSUPP;
    switch (bio.op) {
      case READ:
      case WRITE:
        break;
      case FLUSH:
        if (!capabilities.flush) return ERRNO.EOPNOTSUPP;
        break;
      case DISCARD:
        if (!capabilities.discard && !this.readOnly) return ERRNO.EOPNOTSUPP;
        break;
      case WRITE_ZEROES:
        if (!capabilities.writeZeroes && !this.readOnly) return ERRNO.EOPNOTSUPP;
        break;
    }
    return rangeError(bio, this.size, this.readOnly);
  }

  /** Turns bios into requests while there is room. */
  #issue(): void {
    while (this.#head !== null && this.#connection.hasRoom) {
      const transfer = this.#head;
      const { bio } = transfer;
      const done = transfer.issued;
      const command = commandOf(bio);
      const hasData = bio.op === READ || bio.op === WRITE;
      const length = Math.min(bio.length - done, hasData ? this.#dataLimit : this.#effectLimit);
      transfer.issued += length;
      transfer.pending++;
      if (transfer.issued >= bio.length || bio.op === FLUSH) this.#dequeue();
      const offset = bio.op === FLUSH ? 0 : bio.offset + done;
      this.#connection.submit(
        command,
        commandFlags(bio),
        offset,
        bio.op === FLUSH ? 0 : length,
        bio.at + done,
        transfer,
      );
    }
  }

  #dequeue(): void {
    const transfer = this.#head!;
    this.#head = transfer.next;
    if (this.#head === null) this.#tail = null;
    transfer.next = null;
  }

  /** For Transfer: one of its requests has ended. */
  transferProgress(transfer: Transfer): void {
    // A broken connection issues no more, so what was not issued ends with what was.
    const isHead = transfer === this.#head;
    if (transfer.pending > 0 || (isHead && this.#connection.failure === undefined)) return;
    if (isHead) this.#dequeue();
    const { bio, errno } = transfer;
    transfer.next = this.#free;
    this.#free = transfer;
    bio.end(errno);
  }

  roomLeft(): void {
    this.#issue();
    this.#roomWaiters.shift()?.();
  }

  connectionEnded(): void {
    while (this.#head !== null) {
      const transfer = this.#head;
      this.#dequeue();
      transfer.bio.end(ERRNO.EIO);
    }
    for (const resolve of this.#roomWaiters.splice(0)) resolve();
    this.#end();
  }

  /** The status of [offset, offset + length) in a context, from the start; may stop early. Slow path.
   *  Errors: EINVAL for a context that was not negotiated; what the server says; EPROTO. */
  async blockStatus(context: string, offset: number, length: number): Promise<StatusExtent[]> {
    const id = this.#server.contexts.get(context);
    if (id === undefined)
      throw new BlksnapError('EINVAL', `Cannot ask ${this.name} for "${context}": it was not negotiated`);
    const asked = Math.min(length, this.#effectLimit);
    const byPayload = (this.#server.transmissionFlags & BLOCK_STATUS_PAYLOAD) !== 0 && this.#server.contexts.size > 1;
    while (!this.#connection.hasRoom && this.#connection.failure === undefined) {
      await new Promise<void>((resolve) => this.#roomWaiters.push(resolve));
    }
    if (this.#connection.failure !== undefined) throw this.#connection.failure;
    const answer = await new Promise<{ errno: number; chunks: Uint8Array[] }>((resolve) => {
      const owner: RequestOwner = {
        requestEnded: (request) => resolve({ errno: request.errno, chunks: request.chunks! }),
      };
      this.#connection.submit(CMD_BLOCK_STATUS, 0, offset, asked, 0, owner, byPayload ? id : undefined);
    });
    if (answer.errno !== 0)
      throw this.#connection.failure ?? errnoError(answer.errno, `Cannot read "${context}" of ${this.name}`);
    try {
      return decodeStatus(answer.chunks, id, asked, this.#server.style === 'extended');
    } catch (cause) {
      this.#connection.fail(toBlksnapError(cause));
      throw cause;
    }
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    const extents: Extent[] = [];
    if (!this.#server.contexts.has(BASE_ALLOCATION)) {
      pushExtent(extents, length, false, false);
      return extents;
    }
    for (const { length: run, flags } of await this.blockStatus(BASE_ALLOCATION, offset, length)) {
      // A hole whose content is undefined is no hole in our sense: a hole reads as zeros.
      const zero = (flags & STATE_ZERO) !== 0;
      pushExtent(extents, run, zero && (flags & STATE_HOLE) !== 0, zero);
    }
    return extents;
  }

  async close(): Promise<void> {
    if (!this.#closing) {
      this.#closing = true;
      this.#connection.disconnect();
    }
    await this.#ended;
  }
}

/** What a server offers. Errors: as `NbdClient.connect`; EACCES when it does not tell. */
export async function listExports(
  reactor: Reactor,
  target: Pick<NbdClientOptions, 'address' | 'tls' | 'credentials'>,
): Promise<ListedExport[]> {
  return shakeHands(reactor, target, async ({ wire, stream, flags }) => {
    const listed = await listServerExports(wire, flags);
    stream.close();
    return listed;
  });
}

async function openStream(
  reactor: Reactor,
  { address, tls, credentials }: Pick<NbdClientOptions, 'address' | 'tls' | 'credentials'>,
): Promise<{ readonly stream: Stream; readonly flags: number | null }> {
  if (tls === undefined) return { stream: await reactor.connect(address), flags: null };
  const named = loadClientCredentials(tls, tls.pskName) ?? credentials;
  const proof = named ?? { kind: 'x509', options: { minVersion: MIN_TLS_VERSION } };
  const { fd, flags } = await connectTls(address, {
    credentials: proof,
    hostname: tls.hostname,
    limitMs: HANDSHAKE_LIMIT_MS,
  });
  try {
    return { stream: reactor.adopt(fd, fd), flags };
  } catch (cause) {
    fs.closeSync(fd);
    throw cause;
  }
}

/** Connects and runs a handshake, within a time. The stream is the handshake's to keep; closed on errors. */
async function shakeHands<T>(
  reactor: Reactor,
  target: Pick<NbdClientOptions, 'address' | 'tls' | 'credentials' | 'signal'>,
  run: (line: { readonly wire: Wire; readonly stream: Stream; readonly flags: number | null }) => Promise<T>,
): Promise<T> {
  const { stream, flags } = await openStream(reactor, target);
  const wire = Wire.open(reactor.arena, stream);
  if (wire === null) {
    stream.close();
    throw new BlksnapError('ENOMEM', 'Cannot connect: the arena is full');
  }
  let timedOut = false;
  const timeout: Completion = {
    complete: () => {
      timedOut = true;
      wire.close();
    },
  };
  const timer = reactor.timer(HANDSHAKE_LIMIT_MS, timeout);
  const stopListening = whenAborted(target.signal, () => wire.close());
  try {
    return await run({ wire, stream, flags });
  } catch (cause) {
    stream.close();
    checkGoingOn(target.signal);
    if (timedOut)
      throw new BlksnapError(
        'ETIMEDOUT',
        `The NBD server did not end the handshake in ${HANDSHAKE_LIMIT_MS} ms: it stands still, or has no descriptors left`,
      );
    throw toBlksnapError(cause);
  } finally {
    stopListening();
    reactor.cancelTimer(timer);
    wire.release();
  }
}

function commandOf(bio: Bio): number {
  switch (bio.op) {
    case READ:
      return CMD_READ;
    case WRITE:
      return CMD_WRITE;
    case FLUSH:
      return CMD_FLUSH;
    case DISCARD:
      return CMD_TRIM;
    case WRITE_ZEROES:
      return CMD_WRITE_ZEROES;
    default:
      return unreachable(bio.op);
  }
}

function commandFlags(bio: Bio): number {
  return (
    ((bio.flags & FUA) !== 0 ? CMD_FLAG_FUA : 0) |
    ((bio.flags & NO_HOLE) !== 0 ? CMD_FLAG_NO_HOLE : 0) |
    ((bio.flags & FAST_ZERO) !== 0 ? CMD_FLAG_FAST_ZERO : 0)
  );
}
