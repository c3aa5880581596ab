/** Writes that wait for copy memory, in their order. When none comes for `timeoutMs`, somebody else decides. */

import type { Arena } from '../io/arena.ts';
import type { Reactor } from '../io/reactor.ts';
import { BioQueue } from '../block/bio.ts';
import type { Bio } from '../block/bio.ts';

export interface StarvedWritesOptions {
  readonly reactor: Reactor;
  readonly memory: Arena;
  readonly timeoutMs: number;
  /** The write tries again, and may come back. */
  readonly goOn: (bio: Bio) => void;
  readonly timedOut: () => void;
}

export class StarvedWrites {
  readonly #o: StarvedWritesOptions;
  readonly #bios = new BioQueue();
  #listening = false;
  #timer = 0;
  readonly #onFreed = (): void => this.#feed();
  readonly #onTimeout = { complete: (): void => this.#timedOut() };

  constructor(options: StarvedWritesOptions) {
    this.#o = options;
  }

  push(bio: Bio): void {
    this.#bios.push(bio);
    if (this.#bios.length === 1) this.#timer = this.#o.reactor.timer(this.#o.timeoutMs, this.#onTimeout);
    this.#listen();
  }

  #listen(): void {
    if (this.#listening) return;
    this.#listening = true;
    this.#o.memory.whenFreed(this.#onFreed);
  }

  /** Memory was given back: waiting writes go on, in their order, until one has to wait again. */
  #feed(): void {
    this.#listening = false;
    for (let turns = this.#bios.length; turns > 0; turns--) {
      this.#freeNext();
      if (this.#listening) break;
    }
    if (this.#bios.length > 0) this.#listen();
  }

  /** One that goes on may set those after it free itself. */
  #freeNext(): void {
    const bio = this.#bios.shift();
    if (bio === null) return;
    this.#o.reactor.cancelTimer(this.#timer);
    if (this.#bios.length > 0) this.#timer = this.#o.reactor.timer(this.#o.timeoutMs, this.#onTimeout);
    this.#o.goOn(bio);
  }

  /** Perhaps none of them needs memory any more. */
  wakeAll(): void {
    for (let turns = this.#bios.length; turns > 0; turns--) this.#freeNext();
  }

  #timedOut(): void {
    if (this.#bios.length > 0) this.#o.timedOut();
  }
}
