/** A stream of the portable driver: a net.Socket, or a readable and a writable for a pipe pair.
 *
 *  The readable stays paused and is read piece by piece into the arena; Node buffers at most
 *  STREAM_BUFFER and then stops reading, so a client that is not served cannot fill the memory. */

import type { Readable, Writable } from 'node:stream';
import { assert } from '../../util/assert.ts';
import { ERRNO } from '../../util/errors.ts';
import type { Completion, Stream } from '../reactor.ts';
import { ffiAvailable, peerUid } from '../sys.ts';
import { negativeErrno } from './errno.ts';

/** Bytes that Node may read ahead of `receive`. */
export const STREAM_BUFFER = 256 * 1024;
/** Segments of one send, as many as writev takes. */
const LIST_SEGMENTS = 1024;
/** Sends up to this size are copied into one piece. */
const JOIN_BYTES = 256 * 1024;

/** What the stream needs of its reactor. */
export interface StreamHost {
  readonly memory: Uint8Array;
  started(): void;
  ended(completion: Completion, result: number): void;
  socketOpened(): void;
  socketClosed(): void;
}

export class PortableStream implements Stream {
  readonly #host: StreamHost;
  readonly #readable: Readable;
  readonly #writable: Writable;
  #receiver: Completion | null = null;
  #at = 0;
  #length = 0;
  #received = 0;
  #all = false;
  #sender: Completion | null = null;
  #sendBytes = 0;
  #queued: Uint8Array[] = [];
  #queuedBytes = 0;
  /** -errno of the first failure, or 0. */
  #failure = 0;
  #closed = false;
  /** Memory of the send under way, if it was joined. */
  #joined: Uint8Array | null = null;
  readonly #fill = (): void => this.#moveReceived();
  readonly #written = (error?: Error | null): void => this.#sent(error == null ? this.#sendBytes : -ERRNO.EPIPE);

  constructor(host: StreamHost, readable: Readable, writable: Writable) {
    this.#host = host;
    this.#readable = readable;
    this.#writable = writable;
    host.socketOpened();
    readable.on('readable', this.#fill).on('end', this.#fill);
    const ends = new Set<Readable | Writable>([readable, writable]);
    for (const end of ends) {
      end.on('error', (error: NodeJS.ErrnoException) => this.#failed(negativeErrno(error)));
      end.on('close', () => {
        ends.delete(end);
        if (end === readable && !readable.readableEnded) this.#failed(-ERRNO.ECONNRESET);
        if (end === writable) this.#sent(-ERRNO.ECANCELED);
        if (ends.size === 0) host.socketClosed();
      });
    }
  }

  receive(at: number, length: number, completion: Completion): void {
    this.#receive(at, length, false, completion);
  }

  receiveAll(at: number, length: number, completion: Completion): void {
    this.#receive(at, length, true, completion);
  }

  #receive(at: number, length: number, all: boolean, completion: Completion): void {
    assert(this.#receiver === null, 'one receive at a time');
    this.#host.started();
    this.#receiver = completion;
    this.#at = at;
    this.#length = length;
    this.#received = 0;
    this.#all = all;
    process.nextTick(this.#fill);
  }

  #moveReceived(): void {
    if (this.#receiver === null) return;
    if (this.#closed) return this.#endReceive(-ERRNO.ECANCELED);
    const readable = this.#readable;
    while (this.#received < this.#length && readable.readableLength > 0) {
      const piece = readable.read(
        Math.min(readable.readableLength, this.#length - this.#received),
      ) as Uint8Array | null;
      if (piece === null) break;
      this.#host.memory.set(piece, this.#at + this.#received);
      this.#received += piece.length;
    }
    if (this.#received === this.#length || (this.#received > 0 && !this.#all)) this.#endReceive(this.#received);
    else if (readable.readableEnded) this.#endReceive(0);
    else if (this.#failure < 0) this.#endReceive(this.#failure);
    else readable.read(0); // Asks for more, or for the 'end' event.
  }

  #endReceive(result: number): void {
    const receiver = this.#receiver!;
    this.#receiver = null;
    this.#host.ended(receiver, result);
  }

  queue(at: number, length: number): boolean {
    if (this.#queued.length === LIST_SEGMENTS) return false;
    this.#queued.push(this.#host.memory.subarray(at, at + length));
    this.#queuedBytes += length;
    return true;
  }

  send(completion: Completion): void {
    assert(this.#sender === null && this.#queued.length > 0, 'one send at a time, of something');
    this.#host.started();
    this.#sender = completion;
    this.#sendBytes = this.#queuedBytes;
    const segments = this.#queued;
    this.#queued = [];
    this.#queuedBytes = 0;
    const writable = this.#writable;
    const joined = segments.length > 1 && this.#sendBytes <= JOIN_BYTES;
    const last = joined ? this.#join(segments) : segments.pop()!;
    if (!joined) {
      writable.cork();
      for (const segment of segments) writable.write(segment);
    }
    writable.write(last, this.#written);
    if (!joined) writable.uncork();
  }

  /** Small segments in a row: copying them takes less time than Node takes for each. */
  #join(segments: readonly Uint8Array[]): Uint8Array {
    const joined = (this.#joined ??= new Uint8Array(JOIN_BYTES));
    let end = 0;
    for (const segment of segments) {
      joined.set(segment, end);
      end += segment.length;
    }
    return joined.subarray(0, end);
  }

  #sent(result: number): void {
    const sender = this.#sender;
    if (sender === null) return;
    this.#sender = null;
    // Node reports what a destroyed socket did not send as sent.
    if (this.#closed) this.#host.ended(sender, -ERRNO.ECANCELED);
    else this.#host.ended(sender, result < 0 && this.#failure < 0 ? this.#failure : result);
  }

  #failed(failure: number): void {
    if (this.#failure === 0) this.#failure = failure;
    this.#moveReceived();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#readable.destroy();
    this.#writable.destroy();
    process.nextTick(this.#fill);
  }

  /** Node closes what it has opened, and may have read ahead. */
  release(): number {
    return -1;
  }

  peerUid(): number {
    // Node's own, undocumented, and the only way to the descriptor.
    const fd = (this.#readable as { _handle?: { fd?: number } | null })._handle?.fd ?? -1;
    return fd >= 0 && ffiAvailable() ? peerUid(fd) : -1;
  }
}
