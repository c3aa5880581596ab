/** The timers of a reactor: few, so an unsorted map and the time of the earliest will do. */

import type { Completion } from './reactor.ts';

interface Timer {
  readonly dueMs: number;
  readonly completion: Completion;
}

export class Timers {
  readonly #timers = new Map<number, Timer>();
  #lastHandle = 0;
  /** When the earliest is due; Infinity without one. Same clock as `add`. */
  next = Infinity;

  get size(): number {
    return this.#timers.size;
  }

  add(dueMs: number, completion: Completion): number {
    this.#timers.set(++this.#lastHandle, { dueMs, completion });
    this.next = Math.min(this.next, dueMs);
    return this.#lastHandle;
  }

  cancel(handle: number): void {
    if (this.#timers.delete(handle)) this.#findNext();
  }

  /** Completes all that are due, earliest first. */
  expire(nowMs: number): void {
    if (nowMs < this.next) return;
    const due = [...this.#timers]
      .filter(([, timer]) => timer.dueMs <= nowMs)
      .toSorted(([, a], [, b]) => a.dueMs - b.dueMs);
    for (const [handle, timer] of due) {
      if (this.#timers.delete(handle)) timer.completion.complete(0);
    }
    this.#findNext();
  }

  #findNext(): void {
    this.next = Infinity;
    for (const timer of this.#timers.values()) this.next = Math.min(this.next, timer.dueMs);
  }
}
