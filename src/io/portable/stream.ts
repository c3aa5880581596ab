/** A stream of the portable driver: a net.Socket, or a readable and a writable for a pipe pair.
 *
 *  Hot path. Sends that fit into a socket's buffer leave at once, by a plain write to its descriptor; the rest goes through
 *  Node, which waits for the peer to take it. */

import fs from 'node:fs';
import net from 'node:net';
import type { Readable, Writable } from 'node:stream';
import { assert } from '../../util/assert.ts';
import { ERRNO } from '../../util/errors.ts';
import type { Completion, Stream } from '../reactor.ts';
import { ffiAvailable, peerUid } from '../sys.ts';
import { negativeErrno } from './errno.ts';
import type { Inlet, InletHost } from './inlet.ts';

/** Bytes that a readable without an inlet's memory may read ahead of `receive`. */
export const STREAM_BUFFER = 256 * 1024;
/** Segments of one send, as many as writev takes. */
const LIST_SEGMENTS = 1024;
/** Sends up to this size are copied into one piece. Larger ones would not fit into a socket's buffer. */
export const JOIN_BYTES = 192 * 1024;
/** Up to this size, a loop takes less time than a view of the memory. */
const LOOP_BYTES = 64;

/** What the stream needs of its reactor. */
export interface StreamHost extends InletHost {
  /** JOIN_BYTES, for one call at a time. */
  readonly joined: Uint8Array;
  socketOpened(): void;
  socketClosed(): void;
}

/** Node's own, undocumented, and the only way to a socket's descriptor: -1 once the socket is closed or has none. */
function descriptorOf(end: Readable | Writable): number {
  return (end as { _handle?: { fd?: number } | null })._handle?.fd ?? -1;
}

export class PortableStream implements Stream {
  readonly #host: StreamHost;
  readonly #inlet: Inlet;
  readonly #readable: Readable;
  readonly #writable: Writable;
  #sender: Completion | null = null;
  #sendBytes = 0;
  readonly #segmentAt: number[] = [];
  readonly #segmentLength: number[] = [];
  #segments = 0;
  #queuedBytes = 0;
  /** -errno of the first failure, or 0. */
  #failure = 0;
  #closed = false;
  readonly #written = (error?: Error | null): void => this.#sent(error == null ? this.#sendBytes : -ERRNO.EPIPE);

  /** The inlet of a net.Socket is the one whose `onread` it was made with. */
  constructor(host: StreamHost, inlet: Inlet, readable: Readable, writable: Writable) {
    this.#host = host;
    this.#inlet = inlet;
    this.#readable = readable;
    this.#writable = writable;
    host.socketOpened();
    inlet.attach(readable);
    readable.on('end', () => inlet.finish(0));
    if (!(readable instanceof net.Socket)) {
      readable.on('data', (piece: Uint8Array) => inlet.offer(piece) || readable.pause());
    }
    const ends = new Set<Readable | Writable>([readable, writable]);
    for (const end of ends) {
      end.on('error', (error: NodeJS.ErrnoException) => this.#failed(end, negativeErrno(error)));
      end.on('close', () => {
        ends.delete(end);
        if (end === readable) inlet.finish(readable.readableEnded ? 0 : -ERRNO.ECONNRESET);
        if (end === writable) this.#sent(-ERRNO.ECANCELED);
        if (ends.size === 0) host.socketClosed();
      });
    }
  }

  receive(at: number, length: number, completion: Completion): void {
    this.#inlet.receive(at, length, false, completion);
  }

  receiveAll(at: number, length: number, completion: Completion): void {
    this.#inlet.receive(at, length, true, completion);
  }

  queue(at: number, length: number): boolean {
    if (this.#segments === LIST_SEGMENTS) return false;
    this.#segmentAt[this.#segments] = at;
    this.#segmentLength[this.#segments] = length;
    this.#segments++;
    this.#queuedBytes += length;
    return true;
  }

  send(completion: Completion): void {
    assert(this.#sender === null && this.#segments > 0, 'one send at a time, of something');
    const bytes = this.#queuedBytes;
    const count = this.#segments;
    this.#queuedBytes = 0;
    this.#segments = 0;
    if (this.#closed) return this.#host.finish(completion, -ERRNO.ECANCELED);
    let piece: Uint8Array | null = null;
    if (bytes <= JOIN_BYTES) {
      this.#join(count);
      const sent = this.#sendAtOnce(bytes);
      if (sent === bytes || sent < 0) return this.#host.finish(completion, sent);
      // The joined memory is needed for the next send of another stream.
      piece = this.#host.joined.slice(sent, bytes);
    }
    this.#host.started();
    this.#sender = completion;
    this.#sendBytes = bytes;
    if (piece === null) this.#sendSegments(count);
    else this.#writable.write(piece, this.#written);
  }

  /** Small segments in a row: copying them takes less time than a system call takes for each. */
  #join(count: number): void {
    const { joined, memory } = this.#host;
    let end = 0;
    for (let i = 0; i < count; i++) {
      const at = this.#segmentAt[i]!;
      const length = this.#segmentLength[i]!;
      if (length > LOOP_BYTES) joined.set(memory.subarray(at, at + length), end);
      else for (let j = 0; j < length; j++) joined[end + j] = memory[at + j]!;
      end += length;
    }
  }

  /** How many of the joined bytes the peer's buffer took, or -errno. */
  #sendAtOnce(bytes: number): number {
    const fd = descriptorOf(this.#writable);
    if (fd < 0) return 0;
    try {
      return fs.writeSync(fd, this.#host.joined, 0, bytes, null);
    } catch (error) {
      const result = negativeErrno(error as NodeJS.ErrnoException);
      return result === -ERRNO.EAGAIN ? 0 : result;
    }
  }

  #sendSegments(count: number): void {
    const writable = this.#writable;
    writable.cork();
    for (let i = 0; i < count; i++) {
      const at = this.#segmentAt[i]!;
      const segment = this.#host.memory.subarray(at, at + this.#segmentLength[i]!);
      if (i < count - 1) writable.write(segment);
      else writable.write(segment, this.#written);
    }
    writable.uncork();
  }

  #sent(result: number): void {
    const sender = this.#sender;
    if (sender === null) return;
    this.#sender = null;
    // Node reports what a destroyed socket did not send as sent.
    if (this.#closed) this.#host.ended(sender, -ERRNO.ECANCELED);
    else this.#host.ended(sender, result < 0 && this.#failure < 0 ? this.#failure : result);
  }

  /** Node has closed this end. */
  #failed(end: Readable | Writable, failure: number): void {
    if (this.#failure === 0) this.#failure = failure;
    if (end === this.#readable) this.#inlet.finish(failure);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#readable.destroy();
    this.#writable.destroy();
    this.#inlet.close();
  }

  /** Node closes what it has opened, and may have read ahead. */
  release(): number {
    return -1;
  }

  peerUid(): number {
    const fd = descriptorOf(this.#readable);
    return fd >= 0 && ffiAvailable() ? peerUid(fd) : -1;
  }
}
