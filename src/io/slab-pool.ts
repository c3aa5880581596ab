/** Memory for what stays long: slabs behind the arena's own part of its mapping. Named by places as all data is, so that a
 *  device reads straight into them. They take memory only when they are touched, in huge pages where the system has them. */

import { assert } from '../util/assert.ts';
import { alignUp } from '../util/units.ts';
import { NO_MEMORY } from './arena.ts';

/** A huge page. */
export const SLAB_BYTES = 2 * 1024 * 1024;

export interface SlabMemory {
  /** Called before a slab is lent for the first time. False: there is no memory for it. */
  enable(at: number, length: number): boolean;
  /** The content is wanted no more: its memory goes back to the system. */
  discard(at: number, length: number): void;
}

export class SlabPool {
  readonly #memory: SlabMemory;
  readonly #end: number;
  /** The first that was never lent. */
  #next: number;
  readonly #free: number[] = [];
  #lent = 0;

  /** Lends whole slabs between two places, the first of them `skew` bytes after a multiple of SLAB_BYTES. */
  constructor(memory: SlabMemory, from: number, end: number, skew = 0) {
    this.#memory = memory;
    this.#next = alignUp(from - skew, SLAB_BYTES) + skew;
    this.#end = end;
  }

  get lentBytes(): number {
    return this.#lent * SLAB_BYTES;
  }

  /** A slab's place, or NO_MEMORY. */
  take(): number {
    let at = this.#free.pop() ?? NO_MEMORY;
    if (at === NO_MEMORY && this.#next + SLAB_BYTES <= this.#end && this.#memory.enable(this.#next, SLAB_BYTES)) {
      at = this.#next;
      this.#next += SLAB_BYTES;
    }
    if (at !== NO_MEMORY) this.#lent++;
    return at;
  }

  discard(at: number, length: number): void {
    this.#memory.discard(at, length);
  }

  release(at: number): void {
    assert(this.#lent > 0, 'slab was lent out');
    this.#lent--;
    this.#memory.discard(at, SLAB_BYTES);
    this.#free.push(at);
  }
}

/** Of a reactor that has no memory for slabs. */
export function noSlabs(): SlabPool {
  return new SlabPool({ enable: () => false, discard: () => {} }, 0, 0);
}
