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
  /** The one to be lent next, once one is lent: it is made ready meanwhile. */
  #spare = NO_MEMORY;
  /** Touches memory on another thread, where the driver can: clearing a huge page takes as long as many small copies. */
  prepare: (at: number, length: number) => void = () => {};

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
    const at = this.#spare === NO_MEMORY ? this.#unused() : this.#spare;
    if (at === NO_MEMORY) return at;
    this.#lent++;
    this.#spare = this.#unused();
    if (this.#spare !== NO_MEMORY) this.prepare(this.#spare, SLAB_BYTES);
    return at;
  }

  #unused(): number {
    const at = this.#free.pop();
    if (at !== undefined) return at;
    if (this.#next + SLAB_BYTES > this.#end || !this.#memory.enable(this.#next, SLAB_BYTES)) return NO_MEMORY;
    this.#next += SLAB_BYTES;
    return this.#next - SLAB_BYTES;
  }

  discard(at: number, length: number): void {
    this.#memory.discard(at, length);
  }

  release(at: number): void {
    assert(this.#lent > 0, 'slab was lent out');
    this.#lent--;
    this.#giveBack(at);
    if (this.#lent > 0 || this.#spare === NO_MEMORY) return;
    this.#giveBack(this.#spare);
    this.#spare = NO_MEMORY;
  }

  #giveBack(at: number): void {
    this.#memory.discard(at, SLAB_BYTES);
    this.#free.push(at);
  }
}

/** Of a reactor that has no memory for slabs. */
export function noSlabs(): SlabPool {
  return new SlabPool({ enable: () => false, discard: () => {} }, 0, 0);
}
