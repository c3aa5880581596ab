/** The data memory of all connections: half of the arena, and the line of those who wait for it.
 *  The other half is for buffers of connections, for new ones, and for whatever else works here.
 *
 *  First come, first served.
 *  While somebody waits, nobody behind it gets memory, so that a large request is not starved by
 *  small ones; and only the head of the line keeps what it already has of a request. What is under
 *  way ends and gives its memory back, unless its client does not read (or does not send): such
 *  clients are reported as stalling when the head has waited for too long. */

import { NO_MEMORY } from '../io/arena.ts';
import type { Completion, Reactor } from '../io/reactor.ts';

export interface MemoryWaiter {
  /** Tries again; true when it waits no more. */
  retry(): boolean;
}

export class MemoryLine implements Completion {
  readonly #reactor: Reactor;
  readonly #stallMs: number;
  readonly #onStall: () => void;
  readonly #waiting: MemoryWaiter[] = [];
  readonly #limitBytes: number;
  #lentBytes = 0;
  #listening = false;
  #timer = 0;
  readonly #serve = (): void => this.#serveHead();
  /** Releasing happens deep inside somebody's completion: serve when that is over. */
  readonly #freed = (): void => {
    this.#listening = false;
    queueMicrotask(this.#serve);
  };

  /** `onStall` is called when the head has waited for `stallMs`, and again after each further `stallMs`. */
  constructor(reactor: Reactor, stallMs: number, onStall: () => void) {
    this.#reactor = reactor;
    this.#limitBytes = reactor.arena.size / 2;
    this.#stallMs = stallMs;
    this.#onStall = onStall;
  }

  get length(): number {
    return this.#waiting.length;
  }

  /** Hot path. Memory for `waiter`, unless there is none or others come first: then `join`. */
  allocate(length: number, waiter: MemoryWaiter): number {
    if (this.#waiting.length > 0 && this.#waiting[0] !== waiter) return NO_MEMORY;
    return this.allocateNow(length);
  }

  /** Memory for somebody who cannot stand in the line. */
  allocateNow(length: number): number {
    if (this.#lentBytes + length > this.#limitBytes) return NO_MEMORY;
    const at = this.#reactor.arena.allocate(length);
    if (at !== NO_MEMORY) this.#lentBytes += length;
    return at;
  }

  /** Gives back what was lent with the same length. */
  release(at: number, length: number): void {
    this.#lentBytes -= length;
    this.#reactor.arena.release(at);
  }

  join(waiter: MemoryWaiter): void {
    if (this.#waiting.includes(waiter)) return;
    this.#waiting.push(waiter);
    if (this.#waiting.length === 1) {
      this.#timer = this.#reactor.timer(this.#stallMs, this);
      this.#listen();
    }
  }

  /** A waiter has gone without memory: looks who is next. */
  recheck(): void {
    queueMicrotask(this.#serve);
  }

  #listen(): void {
    if (this.#listening) return;
    this.#listening = true;
    this.#reactor.arena.whenFreed(this.#freed);
  }

  #serveHead(): void {
    const before = this.#waiting.length;
    while (this.#waiting.length > 0 && this.#waiting[0]!.retry()) this.#waiting.shift();
    if (this.#waiting.length > 0) this.#listen();
    if (this.#waiting.length === before) return;
    this.#reactor.cancelTimer(this.#timer);
    if (this.#waiting.length > 0) this.#timer = this.#reactor.timer(this.#stallMs, this);
  }

  /** The timer: the head has made no way. */
  complete(): void {
    if (this.#waiting.length === 0) return;
    this.#timer = this.#reactor.timer(this.#stallMs, this);
    this.#onStall();
  }
}
