/** One client in the transmission phase.
 *
 *      receive -> parse -> check -> bios -> replies (outbox)
 *
 *  Hot path. All requests in the receive buffer are parsed in one go. Small write payloads are
 *  copied out of it; what is still missing of large ones is received where it will be used, piece
 *  by piece, so that a slow client holds one piece and not a whole request.
 *
 *  States: open (takes requests) -> draining (answers what is under way, then closes the stream)
 *  -> dead (waits for bios and stream operations, whose memory cannot be given back before). */

import { DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES } from '../block/bio.ts';
import type { Bio, BioPool, Op } from '../block/bio.ts';
import { NO_MEMORY } from '../io/arena.ts';
import type { Completion, Reactor, Stream } from '../io/reactor.ts';
import { assert } from '../util/assert.ts';
import { codeOfErrno } from '../util/errors.ts';
import { contextsOfPayload } from './block-status.ts';
import { bioFlags, commandError, replyError } from './commands.ts';
import type { CommandRules } from './commands.ts';
import type { ConnectionBuffer, ConnectionBuffers } from './connection-buffers.ts';
import type { SelectedContext } from './contexts.ts';
import type { NbdExport } from './export.ts';
import type { Session } from './handshake.ts';
import {
  HEADER_SLOT,
  inFlightLimit,
  payloadLimit,
  PIECE_BYTES,
  REQUEST_LIMIT,
  SMALL_SEND_BYTES,
  SMALLEST_PIECE_BYTES,
} from './limits.ts';
import type { MemoryLine, MemoryWaiter } from './memory-line.ts';
import { Outbox } from './outbox.ts';
import type { OutboxHost } from './outbox.ts';
import {
  CMD_BLOCK_STATUS,
  CMD_CACHE,
  CMD_DISC,
  CMD_FLAG_PAYLOAD_LEN,
  CMD_FLUSH,
  CMD_READ,
  CMD_TRIM,
  CMD_WRITE,
  CMD_WRITE_ZEROES,
  EXTENDED_HEADER_SIZE,
  EXTENDED_REQUEST_MAGIC,
  getU64,
  NBD_EINVAL,
  NBD_ESHUTDOWN,
  NBD_OK,
  PAYLOAD_LIMIT,
  REQUEST_MAGIC,
  REQUEST_SIZE,
} from './protocol.ts';
import { encodeReply, Request } from './request.ts';
import type { RequestHost } from './request.ts';
import { StatusReplies } from './status-replies.ts';

export interface ConnectionHost {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  readonly line: MemoryLine;
  readonly buffers: ConnectionBuffers;
  /** The connection is gone; with a reason when it was dropped. */
  connectionEnded(connection: Connection, reason: string | undefined): void;
}

/** What `#takeRequest` found. */
const TOOK = 0;
const NEEDS_BYTES = 1;
const MUST_WAIT = 2;

export class Connection implements RequestHost, OutboxHost<Request>, MemoryWaiter {
  readonly served: NbdExport;
  readonly #host: ConnectionHost;
  readonly #stream: Stream;
  readonly #outbox: Outbox<Request>;
  readonly #statuses: StatusReplies;
  readonly #contexts: readonly SelectedContext[];
  readonly #rules: CommandRules;
  readonly #extended: boolean;
  readonly #headerSize: number;
  readonly #chargeLimit: number;

  #state: 'open' | 'draining' | 'dead' = 'open';
  #ended = false;
  #dropReason: string | undefined;

  /** The receive buffer; behind it, the header slots. [#start, #end) is received and not yet parsed. */
  readonly #buffer: ConnectionBuffer;
  readonly #bufferAt: number;
  #start = 0;
  #end = 0;
  #receiving = false;
  /** After a large write another is likely: then only its header is received here, and the payload, uncopied,
   *  where it will be used. */
  #expectsLarge = false;
  /** Bytes of a refused payload that are still to be thrown away. */
  #skip = 0;

  /** The request that waits for memory or payload, and the piece of it that is being filled. */
  #current: Request | null = null;
  #pieceAt = NO_MEMORY;
  #pieceLength = 0;
  /** When receiving the piece's payload began; Infinity when it is not. */
  #payloadSince = Infinity;

  #free: Request | null = null;
  #made = 0;
  #underWay = 0;
  #charged = 0;

  readonly #received: Completion = { complete: (result) => this.#onReceived(result) };
  readonly #payloadReceived: Completion = { complete: (result) => this.#onPayload(result) };

  /** Null when the arena has no room for one more connection. `early` came with the handshake. */
  static open(host: ConnectionHost, stream: Stream, session: Session, early: Uint8Array): Connection | null {
    const buffer = host.buffers.lend();
    return buffer === null ? null : new Connection(host, stream, session, early, buffer);
  }

  private constructor(
    host: ConnectionHost,
    stream: Stream,
    session: Session,
    early: Uint8Array,
    buffer: ConnectionBuffer,
  ) {
    const { arena } = host.reactor;
    this.served = session.served;
    this.#host = host;
    this.#stream = stream;
    this.#outbox = new Outbox(host.line, stream, this);
    this.#contexts = session.contexts;
    this.#extended = session.style === 'extended';
    const ready = (request: Request): void => this.#unhold(request);
    this.#statuses = new StatusReplies({ reactor: host.reactor, line: host.line, extended: this.#extended, ready });
    this.#headerSize = this.#extended ? EXTENDED_HEADER_SIZE : REQUEST_SIZE;
    this.#chargeLimit = inFlightLimit(arena);
    this.#rules = {
      device: session.served.device,
      style: session.style,
      transmissionFlags: session.transmissionFlags,
      payloadLimit: payloadLimit(arena),
      hasContexts: session.contexts.length > 0,
    };
    assert(early.length <= buffer.receiveBytes, 'what came with the handshake fits the buffer');
    this.#buffer = buffer;
    this.#bufferAt = buffer.at;
    arena.bytes.set(early, buffer.at);
    this.#end = early.length;
  }

  /** Begins to serve. */
  start(): void {
    this.#advance();
  }

  /** Takes no more requests, answers those under way, and closes. */
  shutDown(): void {
    if (this.#state !== 'open') return;
    this.#state = 'draining';
    if (this.#current !== null && !this.#receivingPayload) this.#giveUpCurrent();
    this.#settle();
  }

  /** Closes at once; ends when the bios under way have ended. */
  drop(reason: string): void {
    if (this.#state === 'dead') return;
    this.#dropReason = reason;
    this.#die();
  }

  /** Since which tick of the line the client has not taken or sent what the server holds memory for; or Infinity. */
  get waitingSince(): number {
    return Math.min(this.#outbox.sendingSince, this.#payloadSince);
  }

  get #receivingPayload(): boolean {
    return this.#payloadSince !== Infinity;
  }

  // --- receiving ------------------------------------------------------------------------------

  /** Does all that can be done with what is there, then receives more, unless it must wait. */
  #advance(): void {
    while (this.#state === 'open') {
      if (this.#skip > 0 && !this.#skipPayload()) break;
      if (this.#current !== null && !this.#continue(this.#current)) return;
      const outcome = this.#takeRequest();
      if (outcome === MUST_WAIT) return;
      if (outcome === NEEDS_BYTES) break;
    }
    if (this.#state === 'open') this.#receive();
  }

  #skipPayload(): boolean {
    const part = Math.min(this.#skip, this.#end - this.#start);
    this.#start += part;
    this.#skip -= part;
    return this.#skip === 0;
  }

  #receive(): void {
    if (this.#receiving) return;
    if (this.#start === this.#end) {
      this.#start = this.#end = 0;
    } else if (this.#start > 0 && this.#end > this.#buffer.receiveBytes / 2) {
      const { bytes } = this.#host.reactor.arena;
      bytes.copyWithin(this.#bufferAt, this.#bufferAt + this.#start, this.#bufferAt + this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    this.#receiving = true;
    const have = this.#end - this.#start;
    const room =
      this.#expectsLarge && have < this.#headerSize ? this.#headerSize - have : this.#buffer.receiveBytes - this.#end;
    this.#stream.receive(this.#bufferAt + this.#end, room, this.#received);
  }

  #onReceived(result: number): void {
    this.#receiving = false;
    if (this.#state !== 'open') this.#settle();
    else if (result > 0) {
      this.#end += result;
      this.#advance();
    } else if (result === 0) {
      // A client that leaves without DISC. What it asked for is still answered.
      this.shutDown();
    } else this.drop(`receiving failed: ${codeOfErrno(-result)}`);
  }

  /** Parses one request. Nothing of it is consumed unless it is taken. */
  #takeRequest(): number {
    const available = this.#end - this.#start;
    if (available < this.#headerSize) return NEEDS_BYTES;
    const { view } = this.#host.reactor.arena;
    const at = this.#bufferAt + this.#start;
    const magic = view.getUint32(at);
    if (magic !== (this.#extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC)) {
      this.drop(`request with magic number 0x${magic.toString(16)}`);
      return MUST_WAIT;
    }
    const flags = view.getUint16(at + 4);
    const command = view.getUint16(at + 6);
    if (command === CMD_DISC) {
      this.shutDown();
      return MUST_WAIT;
    }
    const length = this.#extended ? getU64(view, at + 24) : view.getUint32(at + 24);
    const payload = (this.#extended ? (flags & CMD_FLAG_PAYLOAD_LEN) !== 0 : command === CMD_WRITE) ? length : 0;
    if (payload > PAYLOAD_LIMIT) {
      this.drop(`request with a payload of ${payload} bytes`);
      return MUST_WAIT;
    }
    if (this.#underWay === REQUEST_LIMIT) return MUST_WAIT;
    if (payload > 0 && payload <= this.#buffer.copyLimit && available < this.#headerSize + payload) return NEEDS_BYTES;
    const charge = command === CMD_READ || command === CMD_WRITE || command === CMD_CACHE ? length : 0;
    if (charge <= this.#rules.payloadLimit && this.#charged > 0 && this.#charged + charge > this.#chargeLimit)
      return MUST_WAIT;
    const request = this.#obtain();
    request.reset(command, flags, view.getUint32(at + 8), view.getUint32(at + 12), getU64(view, at + 16), length);
    this.#start += this.#headerSize;
    this.#expectsLarge = command === CMD_WRITE && payload > this.#buffer.copyLimit;
    this.#take(request, payload, charge);
    return TOOK;
  }

  /** Checks the request and begins it. The payload, if there is one, comes next in the buffer or the stream. */
  #take(request: Request, payload: number, charge: number): void {
    let contexts: readonly SelectedContext[] | null = this.#contexts;
    if (request.command === CMD_BLOCK_STATUS && payload > 0) contexts = this.#payloadContexts(request, payload);
    const { command, flags, offset, length } = request;
    let error = commandError(this.#rules, command, flags, offset, length);
    if (contexts === null || (command === CMD_WRITE && payload === 0)) error = NBD_EINVAL;
    if (error !== NBD_OK || command !== CMD_WRITE) this.#skip = payload;
    if (error !== NBD_OK) {
      request.error = error;
      this.#unhold(request);
      return;
    }
    request.charged = charge;
    this.#charged += charge;
    this.#begin(request, contexts!);
  }

  /** BLOCK_STATUS with a payload: the effect length, and the contexts to tell about. */
  #payloadContexts(request: Request, payload: number): readonly SelectedContext[] | null {
    request.length = 0;
    if (payload > this.#buffer.copyLimit || payload < 8 || payload % 4 !== 0) return null;
    const { view } = this.#host.reactor.arena;
    const at = this.#bufferAt + this.#start;
    request.length = getU64(view, at);
    return contextsOfPayload(view, at, payload, this.#contexts);
  }

  // --- requests to bios -----------------------------------------------------------------------

  #begin(request: Request, contexts: readonly SelectedContext[]): void {
    switch (request.command) {
      case CMD_READ:
      case CMD_WRITE:
      case CMD_CACHE:
        this.#current = request;
        break;
      case CMD_FLUSH:
        this.#submit(request, FLUSH);
        break;
      case CMD_TRIM:
        this.#submit(request, DISCARD);
        break;
      case CMD_WRITE_ZEROES:
        this.#submit(request, WRITE_ZEROES);
        break;
      case CMD_BLOCK_STATUS:
        this.#statuses.begin(request, contexts);
        break;
    }
  }

  /** The only bio of a request without data. */
  #submit(request: Request, op: Op): void {
    const { device } = this.#rules;
    device.submit(this.#host.pool.get(op, request.offset, request.length, 0, bioFlags(request), request));
  }

  /** Goes on with a request that has data; false when it must wait for memory or payload. */
  #continue(request: Request): boolean {
    const isWrite = request.command === CMD_WRITE;
    while (request.issued < request.length) {
      if (this.#pieceAt === NO_MEMORY && !this.#takePiece(request)) return false;
      if (isWrite && !this.#fillPiece()) return false;
      this.#issuePiece(request, isWrite ? WRITE : READ);
    }
    this.#current = null;
    this.#unhold(request);
    return true;
  }

  /** Lends memory for the next piece; a smaller one where there is no large run. */
  #takePiece(request: Request): boolean {
    const { line } = this.#host;
    this.#pieceLength = Math.min(request.length - request.issued, PIECE_BYTES);
    this.#pieceAt = line.allocate(this.#pieceLength, this);
    if (this.#pieceAt === NO_MEMORY && this.#pieceLength > SMALLEST_PIECE_BYTES) {
      this.#pieceLength = SMALLEST_PIECE_BYTES;
      this.#pieceAt = line.allocate(this.#pieceLength, this);
    }
    if (this.#pieceAt !== NO_MEMORY) return true;
    line.join(this);
    return false;
  }

  /** Moves payload into the piece; false when the rest of it has to be received first. */
  #fillPiece(): boolean {
    const { arena } = this.#host.reactor;
    const from = this.#bufferAt + this.#start;
    const have = Math.min(this.#pieceLength, this.#end - this.#start);
    arena.bytes.copyWithin(this.#pieceAt, from, from + have);
    this.#start += have;
    if (have === this.#pieceLength) return true;
    this.#payloadSince = this.#host.line.now();
    this.#stream.receiveAll(this.#pieceAt + have, this.#pieceLength - have, this.#payloadReceived);
    return false;
  }

  #onPayload(result: number): void {
    this.#payloadSince = Infinity;
    if (this.#state !== 'open') this.#settle();
    else if (result > 0) {
      this.#issuePiece(this.#current!, WRITE);
      this.#advance();
    } else if (result === 0) this.drop('the client left in the middle of a write');
    else this.drop(`receiving failed: ${codeOfErrno(-result)}`);
  }

  #issuePiece(request: Request, op: Op): void {
    const at = this.#pieceAt;
    const length = this.#pieceLength;
    const offset = request.offset + request.issued;
    this.#pieceAt = NO_MEMORY;
    request.issued += length;
    request.pending++;
    if (request.command === CMD_READ) request.addPiece(at, length);
    this.#rules.device.submit(this.#host.pool.get(op, offset, length, at, bioFlags(request), request));
  }

  /** The connection ends before its current request got all its memory or payload. */
  #giveUpCurrent(): void {
    const request = this.#current!;
    this.#current = null;
    if (this.#pieceAt !== NO_MEMORY) this.#host.line.release(this.#pieceAt, this.#pieceLength);
    this.#pieceAt = NO_MEMORY;
    request.error = NBD_ESHUTDOWN;
    this.#host.line.recheck();
    this.#unhold(request);
  }

  retry(): boolean {
    if (this.#current !== null && !this.#receivingPayload) this.#advance();
    return this.#state !== 'open' || this.#current === null || this.#receivingPayload;
  }

  bioEnded(request: Request, bio: Bio): void {
    if (bio.status !== 0 && request.error === NBD_OK) request.error = replyError(request, bio.status);
    if (request.command === CMD_WRITE || request.command === CMD_CACHE) this.#host.line.release(bio.at, bio.length);
    this.#host.pool.put(bio);
    this.#unhold(request);
  }

  /** One bio less, or no more to come: at zero, the reply is due. */
  #unhold(request: Request): void {
    request.pending--;
    if (request.pending > 0) return;
    if (request.error !== NBD_OK) this.#releasePieces(request);
    if (this.#state === 'dead') {
      this.messageLeft(request);
      this.#settle();
      return;
    }
    // The chunks of a block status are in its piece, headers and all.
    const bare = request.command === CMD_BLOCK_STATUS && request.error === NBD_OK;
    request.headerLength = bare ? 0 : encodeReply(this.#host.reactor.arena.view, request, this.#rules.style);
    this.#outbox.push(request);
  }

  // --- the end of requests, and of the connection ---------------------------------------------

  messageLeft(request: Request): void {
    this.#releasePieces(request);
    this.#charged -= request.charged;
    request.next = this.#free;
    this.#free = request;
    this.#underWay--;
  }

  get sendBytes(): number {
    return this.#rules.device.givesWay === true ? SMALL_SEND_BYTES : PIECE_BYTES;
  }

  sendEnded(result: number): void {
    if (this.#state === 'draining' && result < 0) {
      // Whoever left takes none of the replies that wait behind this one.
      this.#die();
    } else if (this.#state !== 'open') this.#settle();
    else if (result < 0) this.drop(`sending failed: ${codeOfErrno(-result)}`);
    else if (this.#current === null) this.#advance();
  }

  #obtain(): Request {
    this.#underWay++;
    const request = this.#free;
    if (request === null)
      return new Request(this, this.#bufferAt + this.#buffer.receiveBytes + HEADER_SLOT * this.#made++);
    this.#free = request.next;
    return request;
  }

  #releasePieces(request: Request): void {
    for (let i = 0; i < request.pieces; i++) this.#host.line.release(request.pieceAt[i]!, request.pieceLength[i]!);
    request.pieces = 0;
  }

  #die(): void {
    this.#state = 'dead';
    this.#statuses.stop();
    this.#outbox.stop();
    this.#stream.close();
    this.#settle();
  }

  /** Takes the next step towards the end, if it is time. */
  #settle(): void {
    if (this.#state === 'draining' && this.#underWay === (this.#current === null ? 0 : 1)) this.#die();
    if (this.#state !== 'dead' || this.#receiving || this.#receivingPayload || this.#outbox.sending) return;
    this.#outbox.clear();
    if (this.#current !== null) this.#giveUpCurrent();
    if (this.#underWay > 0 || this.#ended) return;
    this.#ended = true;
    this.#host.buffers.giveBack(this.#buffer);
    this.#host.connectionEnded(this, this.#dropReason);
  }
}
