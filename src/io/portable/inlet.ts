/** What arrives on a stream of the portable driver, on its way into the arena.
 *
 *  Hot path. Node reads from a socket right into what its `onread` option names: where the receive under way wants it. By
 *  default Node allocates a buffer for each piece, and V8 marks the heap all the time because of them.
 *  What comes when nothing is being received goes through the reactor's staging memory, and is held here; then
 *  reading pauses, so a client that is not served cannot fill the memory. */

import type { Readable } from 'node:stream';
import { assert } from '../../util/assert.ts';
import { ERRNO } from '../../util/errors.ts';
import type { Completion } from '../reactor.ts';

/** What an inlet needs of its reactor. */
export interface InletHost {
  readonly memory: Uint8Array;
  /** Used by one callback of Node at a time. */
  readonly staging: Uint8Array;
  started(): void;
  ended(completion: Completion, result: number): void;
  /** Ends an operation later, which was not `started`. */
  finish(completion: Completion, result: number): void;
}

export class Inlet {
  /** For a net.Socket. Node asks for a buffer first, and then after each piece. */
  readonly onread = {
    buffer: (): Uint8Array => this.#target(),
    callback: (count: number, buffer: Uint8Array): boolean => this.#arrived(count, buffer),
  };
  readonly #host: InletHost;
  #readable: Pick<Readable, 'resume'> | null = null;
  #receiver: Completion | null = null;
  #at = 0;
  #length = 0;
  #received = 0;
  #all = false;
  /** Where Node reads to, if it is the arena, and its place and length. */
  #view: Uint8Array | null = null;
  #viewAt = 0;
  #viewLength = 0;
  #held: Uint8Array = NOTHING;
  /** How the stream ended: 0, or -errno; 1 as long as it goes on. */
  #end = 1;

  constructor(host: InletHost) {
    this.#host = host;
  }

  /** Names what is read from, once it is there. */
  attach(readable: Pick<Readable, 'resume'>): void {
    this.#readable = readable;
  }

  receive(at: number, length: number, all: boolean, completion: Completion): void {
    assert(this.#receiver === null, 'one receive at a time');
    this.#at = at;
    this.#length = length;
    this.#received = 0;
    this.#all = all;
    const wasHeld = this.#held.length > 0;
    if (wasHeld) this.#take(this.#held);
    if (this.#isDone) this.#host.finish(completion, this.#received);
    else if (this.#end <= 0) this.#host.finish(completion, this.#end);
    else {
      this.#host.started();
      this.#receiver = completion;
    }
    if (wasHeld && this.#held.length === 0) this.#readable!.resume();
  }

  /** A piece of a readable that has no `onread`. False when it must pause. */
  offer(piece: Uint8Array): boolean {
    if (this.#receiver === null) this.#held = piece.slice();
    else {
      this.#take(piece);
      // Its memory is the giver's.
      if (this.#held.length > 0) this.#held = this.#held.slice();
      if (this.#isDone) this.#endReceive(this.#received);
    }
    return this.#held.length === 0;
  }

  /** Nothing more arrives: the stream has ended (0), or failed. Only when the readable reads no more: what is being received
   *  ends, and its memory is given back. */
  finish(result: number): void {
    if (this.#end > 0) this.#end = result;
    if (this.#receiver !== null) this.#endReceive(this.#end);
  }

  /** Closed by its owner: a receive under way ends, but not in this call. */
  close(): void {
    this.#held = NOTHING;
    this.#end = -ERRNO.ECANCELED;
    if (this.#receiver !== null) process.nextTick(() => this.finish(-ERRNO.ECANCELED));
  }

  #target(): Uint8Array {
    if (this.#receiver === null) return this.#host.staging;
    const at = this.#at + this.#received;
    const length = this.#length - this.#received;
    if (this.#view === null || this.#viewAt !== at || this.#viewLength !== length) {
      this.#view = this.#host.memory.subarray(at, at + length);
      this.#viewAt = at;
      this.#viewLength = length;
    }
    return this.#view;
  }

  #arrived(count: number, buffer: Uint8Array): boolean {
    if (buffer === this.#host.staging) return this.offer(buffer.subarray(0, count));
    assert(this.#receiver !== null, 'Node reads into the arena only for a receive under way');
    this.#received += count;
    if (this.#isDone) this.#endReceive(this.#received);
    return this.#held.length === 0;
  }

  /** Moves what fits to the receive, and holds the rest. */
  #take(piece: Uint8Array): void {
    const count = Math.min(piece.length, this.#length - this.#received);
    const fits = count === piece.length ? piece : piece.subarray(0, count);
    this.#host.memory.set(fits, this.#at + this.#received);
    this.#received += count;
    this.#held = count === piece.length ? NOTHING : piece.subarray(count);
  }

  get #isDone(): boolean {
    return this.#received === this.#length || (this.#received > 0 && !this.#all);
  }

  #endReceive(result: number): void {
    const receiver = this.#receiver!;
    this.#receiver = null;
    this.#host.ended(receiver, result);
  }
}

const NOTHING = new Uint8Array(0);
