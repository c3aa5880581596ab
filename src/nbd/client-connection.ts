/** The client's end of the transmission phase: requests out, replies in.
 *
 *  Hot path. Requests of one turn leave in one send. Replies are parsed out of a receive buffer;
 *  a read's data that is not in it yet is received straight into its place. The server is not
 *  trusted: a reply to nothing, of the wrong kind or with the wrong extent ends the connection. */

import { NO_MEMORY } from '../io/arena.ts';
import type { Completion, Reactor, Stream } from '../io/reactor.ts';
import { assert } from '../util/assert.ts';
import { BlksnapError, ERRNO, errnoError } from '../util/errors.ts';
import { KIB } from '../util/units.ts';
import { ClientRequest, encodeRequest } from './client-request.ts';
import type { RequestOwner } from './client-request.ts';
import { PIECE_BYTES, CONNECTION_BYTES, HEADER_SLOT, REQUEST_LIMIT, SLOTS_BYTES } from './limits.ts';
import { Outbox } from './outbox.ts';
import type { OutboxHost } from './outbox.ts';
import {
  CMD_BLOCK_STATUS,
  CMD_DISC,
  CMD_READ,
  errnoOfNbd,
  EXTENDED_HEADER_SIZE,
  EXTENDED_REPLY_MAGIC,
  getU64,
  isErrorChunk,
  NBD_OK,
  REPLY_BLOCK_STATUS,
  REPLY_BLOCK_STATUS_EXT,
  REPLY_FLAG_DONE,
  REPLY_NONE,
  REPLY_OFFSET_DATA,
  REPLY_OFFSET_HOLE,
  SIMPLE_REPLY_MAGIC,
  SIMPLE_REPLY_SIZE,
  STRING_LIMIT,
  STRUCTURED_REPLY_MAGIC,
  STRUCTURED_REPLY_SIZE,
} from './protocol.ts';
import type { HeaderStyle } from './protocol.ts';

/** With reads above this size under way, little is received at once, so that their data goes straight to its place. To
 *  copy less takes no longer than to receive it by itself. */
const LARGE_READ = 64 * KIB;
const SMALL_RECEIVE = 4 * KIB;
const RECEIVE_BYTES = CONNECTION_BYTES - SLOTS_BYTES;
const ERROR_CHUNK_LIMIT = STRING_LIMIT + 64;

export interface ClientConnectionHost {
  /** A request has ended: there is room for another. */
  roomLeft(): void;
  /** The connection is gone, and nothing of it is under way. */
  connectionEnded(): void;
}

export class ClientConnection implements OutboxHost<ClientRequest> {
  readonly sendBytes = PIECE_BYTES;
  readonly #reactor: Reactor;
  readonly #stream: Stream;
  readonly #style: HeaderStyle;
  readonly #host: ClientConnectionHost;
  readonly #outbox: Outbox<ClientRequest>;

  /** Why the connection ended; set once. */
  failure: BlksnapError | undefined;
  #ended = false;

  readonly #bufferAt: number;
  #start = 0;
  #end = 0;
  #receiving = false;

  readonly #slots: ClientRequest[] = [];
  /** Requests under way by slot; null elsewhere. */
  readonly #underWay: Array<ClientRequest | null> = [];
  #free: ClientRequest | null = null;
  #count = 0;
  #largeReads = 0;

  /** The chunk whose payload is coming: into the arena (data), or into a heap buffer (status). */
  #chunkOf: ClientRequest | null = null;
  #chunkDone = false;
  #dataAt = 0;
  #dataLeft = 0;
  #status: Uint8Array | null = null;
  #statusFilled = 0;

  readonly #received: Completion = { complete: (result) => this.#onReceived(result) };
  readonly #dataReceived: Completion = { complete: (result) => this.#onData(result) };

  /** `early` came with the handshake. Errors: ENOMEM. */
  constructor(reactor: Reactor, stream: Stream, style: HeaderStyle, early: Uint8Array, host: ClientConnectionHost) {
    const at = reactor.arena.allocate(CONNECTION_BYTES);
    if (at === NO_MEMORY) throw new BlksnapError('ENOMEM', 'Cannot connect: the arena is full');
    this.#reactor = reactor;
    this.#stream = stream;
    this.#style = style;
    this.#host = host;
    this.#outbox = new Outbox(reactor, stream, this);
    this.#bufferAt = at;
    reactor.arena.bytes.set(early, at);
    this.#end = early.length;
  }

  start(): void {
    this.#parse();
  }

  get count(): number {
    return this.#count;
  }

  get hasRoom(): boolean {
    return this.#count < REQUEST_LIMIT && this.failure === undefined;
  }

  /** Sends a request; only with `hasRoom`. */
  submit(
    command: number,
    flags: number,
    offset: number,
    length: number,
    at: number,
    owner: RequestOwner,
    contextId?: number,
  ): void {
    assert(this.hasRoom, 'the connection has room');
    const request = this.#obtain();
    request.reset(command, flags, offset, length, at, owner);
    if (command === CMD_READ && length > LARGE_READ) this.#largeReads++;
    this.#underWay[request.slot] = request;
    encodeRequest(this.#reactor.arena.view, request, this.#style === 'extended', contextId);
    this.#outbox.push(request);
  }

  /** Says goodbye and closes. No request may be under way. */
  disconnect(): void {
    if (this.failure !== undefined) return;
    assert(this.#count === 0, 'no request under way at the end');
    this.submit(CMD_DISC, 0, 0, 0, 0, { requestEnded: () => {} });
  }

  fail(error: BlksnapError): void {
    if (this.failure !== undefined) return;
    this.failure = error;
    this.#outbox.stop();
    this.#stream.close();
    this.#settle();
  }

  #violation(what: string): void {
    this.fail(new BlksnapError('EPROTO', `The NBD server broke the protocol: ${what}`));
  }

  // --- receiving ------------------------------------------------------------------------------

  #receive(): void {
    if (this.#start === this.#end) this.#start = this.#end = 0;
    else if (this.#start > 0 && this.#end > RECEIVE_BYTES / 2) {
      const { bytes } = this.#reactor.arena;
      bytes.copyWithin(this.#bufferAt, this.#bufferAt + this.#start, this.#bufferAt + this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    const room = RECEIVE_BYTES - this.#end;
    this.#receiving = true;
    this.#stream.receive(
      this.#bufferAt + this.#end,
      this.#largeReads > 0 ? Math.min(room, SMALL_RECEIVE) : room,
      this.#received,
    );
  }

  #onReceived(result: number): void {
    this.#receiving = false;
    if (this.failure !== undefined) this.#settle();
    else if (result > 0) {
      this.#end += result;
      this.#parse();
    } else this.#lost(result);
  }

  #onData(result: number): void {
    this.#receiving = false;
    if (this.failure !== undefined) this.#settle();
    else if (result > 0) {
      this.#dataLeft = 0;
      this.#chunkEnded();
      this.#parse();
    } else this.#lost(result);
  }

  #lost(result: number): void {
    this.fail(
      result === 0
        ? new BlksnapError('ECONNRESET', 'The NBD server closed the connection')
        : errnoError(-result, 'Lost the connection to the NBD server'),
    );
  }

  #parse(): void {
    while (this.failure === undefined) {
      if (this.#dataLeft > 0) {
        if (!this.#takeData()) return;
      } else if (this.#status !== null) {
        if (!this.#takeStatus()) break;
      } else if (!this.#takeHeader()) break;
    }
    if (this.failure === undefined) this.#receive();
  }

  /** Moves a read's data to its place; false when the rest is received there by itself. */
  #takeData(): boolean {
    const { arena } = this.#reactor;
    const from = this.#bufferAt + this.#start;
    const have = Math.min(this.#dataLeft, this.#end - this.#start);
    arena.bytes.copyWithin(this.#dataAt, from, from + have);
    this.#start += have;
    this.#dataAt += have;
    this.#dataLeft -= have;
    if (this.#dataLeft === 0) {
      this.#chunkEnded();
      return true;
    }
    this.#receiving = true;
    this.#stream.receiveAll(this.#dataAt, this.#dataLeft, this.#dataReceived);
    return false;
  }

  /** Collects a block status; false when more has to be received. */
  #takeStatus(): boolean {
    const status = this.#status!;
    const from = this.#bufferAt + this.#start;
    const have = Math.min(status.length - this.#statusFilled, this.#end - this.#start);
    status.set(this.#reactor.arena.bytes.subarray(from, from + have), this.#statusFilled);
    this.#start += have;
    this.#statusFilled += have;
    if (this.#statusFilled < status.length) return false;
    this.#status = null;
    this.#chunkOf!.chunks!.push(status);
    this.#chunkEnded();
    return true;
  }

  #chunkEnded(): void {
    const request = this.#chunkOf!;
    this.#chunkOf = null;
    if (this.#chunkDone) this.#answered(request);
  }

  /** Parses one reply's header; false when it is not there yet. */
  #takeHeader(): boolean {
    const available = this.#end - this.#start;
    if (available < SIMPLE_REPLY_SIZE) return false;
    const { view } = this.#reactor.arena;
    const at = this.#bufferAt + this.#start;
    const magic = view.getUint32(at);
    if (magic === SIMPLE_REPLY_MAGIC && this.#style !== 'extended') {
      this.#start += SIMPLE_REPLY_SIZE;
      this.#simpleReply(view.getUint32(at + 4), view.getUint32(at + 8), view.getUint32(at + 12));
      return true;
    }
    const expected = this.#style === 'extended' ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC;
    if (magic !== expected || this.#style === 'simple') {
      this.#violation(`reply with magic number 0x${magic.toString(16)}`);
      return false;
    }
    return this.#takeChunk(at, available);
  }

  #find(generation: number, slot: number): ClientRequest | null {
    const request = this.#underWay[slot] ?? null;
    if (request !== null && request.generation === generation && !request.answered) return request;
    this.#violation('a reply to no request');
    return null;
  }

  #simpleReply(error: number, generation: number, slot: number): void {
    const request = this.#find(generation, slot);
    if (request === null) return;
    if (error !== NBD_OK) request.errno = errnoOfNbd(error);
    else if (request.command === CMD_READ && this.#style === 'simple') {
      request.cover(0, request.length);
      this.#expectData(request, request.at, request.length, true);
      return;
    } else if (request.command === CMD_READ || request.command === CMD_BLOCK_STATUS) {
      this.#violation('a simple reply where data is due');
      return;
    }
    this.#answered(request);
  }

  #expectData(request: ClientRequest, at: number, length: number, done: boolean): void {
    this.#chunkOf = request;
    this.#chunkDone = done;
    this.#dataAt = at;
    this.#dataLeft = length;
  }

  #takeChunk(at: number, available: number): boolean {
    const extended = this.#style === 'extended';
    const headerSize = extended ? EXTENDED_HEADER_SIZE : STRUCTURED_REPLY_SIZE;
    if (available < headerSize) return false;
    const { view } = this.#reactor.arena;
    const done = (view.getUint16(at + 4) & REPLY_FLAG_DONE) !== 0;
    const type = view.getUint16(at + 6);
    const request = this.#find(view.getUint32(at + 8), view.getUint32(at + 12));
    if (request === null) return false;
    const payload = extended ? getU64(view, at + 24) : view.getUint32(at + 16);
    if (extended && getU64(view, at + 16) !== request.offset) {
      this.#violation('a reply with another offset than its request');
      return false;
    }
    // Of data chunks, the fixed part; of statuses, none; of others, all.
    const fixed =
      type === REPLY_OFFSET_DATA ? 8 : type === REPLY_BLOCK_STATUS || type === REPLY_BLOCK_STATUS_EXT ? 0 : payload;
    if (fixed > ERROR_CHUNK_LIMIT) {
      this.#violation(`a chunk of type ${type} with ${payload} bytes`);
      return false;
    }
    if (available < headerSize + fixed) return false;
    this.#start += headerSize + fixed;
    if (!this.#chunk(request, type, at + headerSize, payload, done)) {
      this.#violation(`a wrong chunk of type ${type} with ${payload} bytes, for command ${request.command}`);
    }
    return true;
  }

  /** False when the chunk does not fit its request. */
  #chunk(request: ClientRequest, type: number, at: number, payload: number, done: boolean): boolean {
    const { view, bytes } = this.#reactor.arena;
    if (isErrorChunk(type)) {
      if (payload < 6 || view.getUint16(at + 4) > payload - 6) return false;
      if (request.errno === 0) request.errno = errnoOfNbd(view.getUint32(at)) || ERRNO.EIO;
      if (done) this.#answered(request);
      return true;
    }
    switch (type) {
      case REPLY_NONE:
        if (payload !== 0 || !done) return false;
        this.#answered(request);
        return true;
      case REPLY_OFFSET_DATA: {
        const start = getU64(view, at) - request.offset;
        if (request.command !== CMD_READ || !request.cover(start, payload - 8)) return false;
        this.#expectData(request, request.at + start, payload - 8, done);
        return true;
      }
      case REPLY_OFFSET_HOLE: {
        if (payload !== 12 || request.command !== CMD_READ) return false;
        const start = getU64(view, at) - request.offset;
        const length = view.getUint32(at + 8);
        if (!request.cover(start, length)) return false;
        bytes.fill(0, request.at + start, request.at + start + length);
        if (done) this.#answered(request);
        return true;
      }
      case REPLY_BLOCK_STATUS:
      case REPLY_BLOCK_STATUS_EXT: {
        const wanted = this.#style === 'extended' ? REPLY_BLOCK_STATUS_EXT : REPLY_BLOCK_STATUS;
        if (request.command !== CMD_BLOCK_STATUS || type !== wanted || !request.takeStatus(payload)) return false;
        this.#chunkOf = request;
        this.#chunkDone = done;
        this.#status = new Uint8Array(payload);
        this.#statusFilled = 0;
        return true;
      }
      default:
        return false;
    }
  }

  // --- the end of requests, and of the connection ---------------------------------------------

  #answered(request: ClientRequest): void {
    if (request.command === CMD_READ && request.errno === 0 && !request.complete) {
      this.#violation('a read without all of its data');
      return;
    }
    request.answered = true;
    if (request.left) this.#finish(request);
  }

  messageLeft(request: ClientRequest): void {
    request.left = true;
    if (request.answered) this.#finish(request);
    else if (request.command === CMD_DISC) this.fail(new BlksnapError('ESHUTDOWN', 'The NBD connection was closed'));
  }

  sendEnded(result: number): void {
    if (this.failure !== undefined) this.#settle();
    else if (result < 0) this.#lost(result);
  }

  #obtain(): ClientRequest {
    this.#count++;
    const request = this.#free;
    if (request !== null) {
      this.#free = request.next;
      return request;
    }
    const slot = this.#slots.length;
    const made = new ClientRequest(slot, this.#bufferAt + RECEIVE_BYTES + slot * HEADER_SLOT);
    this.#slots.push(made);
    this.#underWay.push(null);
    return made;
  }

  #finish(request: ClientRequest): void {
    if (request.command === CMD_READ && request.length > LARGE_READ) this.#largeReads--;
    this.#underWay[request.slot] = null;
    this.#count--;
    request.owner.requestEnded(request);
    request.next = this.#free;
    this.#free = request;
    this.#host.roomLeft();
  }

  /** After a failure: when the stream is done with all memory, everything under way ends. */
  #settle(): void {
    if (this.#receiving || this.#outbox.sending || this.#ended) return;
    this.#ended = true;
    this.#outbox.clear();
    for (const request of this.#slots) {
      if (this.#underWay[request.slot] === null) continue;
      if (!request.answered || request.errno === 0) request.errno = ERRNO.EIO;
      this.#finish(request);
    }
    this.#reactor.arena.release(this.#bufferAt);
    this.#host.connectionEnded();
  }
}
