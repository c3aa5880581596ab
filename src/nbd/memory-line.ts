/** The data memory of all connections: half of the arena, and the line of those who wait for it.
 *  The other half is for buffers of connections, for new ones, and for whatever else works here.
 *
 *  First come, first served.
 *  While somebody waits, nobody behind it gets memory, so that a large request is not starved by
 *  small ones; and only the head of the line keeps what it already has of a request. What is under
 *  way ends and gives its memory back, unless its client does not read (or does not send): such
 *  clients are reported as stalling when the head has waited for too long.
 *
 *  Time is counted in ticks of a timer that runs while somebody waits. When the whole process stands still (a paused
 *  machine, say), that is one tick, and nobody is blamed for it. */

import { NO_MEMORY } from '../io/arena.ts';
import type { Completion, Reactor } from '../io/reactor.ts';

/** A limit is passed when one tick more than these has gone by: never too early, and at most a quarter of it too late. */
const TICKS = 4;

export interface MemoryWaiter {
  /** Tries again; true when it waits no more. */
  retry(): boolean;
}

export class MemoryLine implements Completion {
  readonly #reactor: Reactor;
  readonly #tickMs: number;
  readonly #onStall: (sinceTick: number) => void;
  readonly #waiting: MemoryWaiter[] = [];
  readonly #limitBytes: number;
  #lentBytes = 0;
  #listening = false;
  #timer = 0;
  #ticks = 0;
  /** When the head came to its place. */
  #headSince = 0;
  readonly #serve = (): void => this.#serveHead();
  /** Releasing happens deep inside somebody's completion: serve when that is over. */
  readonly #freed = (): void => {
    this.#listening = false;
    queueMicrotask(this.#serve);
  };

  /** `onStall` is called when the head has waited for `stallMs`, and again at each further tick. Who has stood still
   *  since `sinceTick`, or longer, has done so for `stallMs`, too. */
  constructor(reactor: Reactor, stallMs: number, onStall: (sinceTick: number) => void) {
    this.#reactor = reactor;
    this.#limitBytes = reactor.arena.size / 2;
    this.#tickMs = stallMs / TICKS;
    this.#onStall = onStall;
  }

  get length(): number {
    return this.#waiting.length;
  }

  /** In ticks. */
  now(): number {
    return this.#ticks;
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
      this.#headSince = this.#ticks;
      this.#timer = this.#reactor.timer(this.#tickMs, this);
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
    this.#headSince = this.#ticks;
    if (this.#waiting.length === 0) this.#reactor.cancelTimer(this.#timer);
  }

  /** A tick. */
  complete(): void {
    if (this.#waiting.length === 0) return;
    this.#ticks++;
    this.#timer = this.#reactor.timer(this.#tickMs, this);
    const sinceTick = this.#ticks - TICKS - 1;
    if (this.#headSince <= sinceTick) this.#onStall(sinceTick);
  }
}
