/** Chunks of storage in memory that old data is read straight into, in place of being copied there. Positions here are
 *  their own, from 0; each is given out once. */

import { NO_MEMORY } from '../io/arena.ts';
import { completed } from '../io/reactor.ts';
import type { Reactor } from '../io/reactor.ts';
import { SLAB_BYTES } from '../io/slab-pool.ts';
import type { SlabPool } from '../io/slab-pool.ts';
import { assert } from '../util/assert.ts';
import { GIB } from '../util/units.ts';
import { CHUNK } from './chunk-table.ts';

const SLAB_CHUNKS = SLAB_BYTES / CHUNK;
/** Positions that lie in slabs; those of the storage's file come after. */
export const SLAB_POSITIONS = (4 * GIB) / CHUNK;
/** Slabs given back in one turn of the reactor. */
const RELEASED_AT_ONCE = 32;

export class StorageSlabs {
  readonly #pool: SlabPool;
  /** The place of each; NO_MEMORY for one that was given back. */
  readonly #slabs: number[] = [];
  /** Chunks of each that are in use, or will be. */
  readonly #live: number[] = [];
  #next = 0;

  constructor(pool: SlabPool) {
    this.#pool = pool;
  }

  /** How many chunks in a row `take` has now, at most `count`; 0 when there are no more. */
  room(count: number): number {
    let end = this.#slabs.length * SLAB_CHUNKS;
    if (this.#next === end && end < SLAB_POSITIONS) {
      const at = this.#pool.take();
      if (at === NO_MEMORY) return 0;
      this.#slabs.push(at);
      this.#live.push(SLAB_CHUNKS);
      end += SLAB_CHUNKS;
    }
    return Math.min(count, end - this.#next);
  }

  /** The first of `count` chunks in a row. Not more than `room` said. */
  take(count: number): number {
    const position = this.#next;
    this.#next += count;
    return position;
  }

  /** Where the chunk is, or NO_MEMORY for a position beyond. */
  placeOf(position: number): number {
    if (position >= SLAB_POSITIONS) return NO_MEMORY;
    const slab = Math.floor(position / SLAB_CHUNKS);
    return this.#slabs[slab]! + (position - slab * SLAB_CHUNKS) * CHUNK;
  }

  /** Nobody wants these any more. */
  discard(position: number, count: number): void {
    for (let from = position; from < position + count;) {
      const slab = Math.floor(from / SLAB_CHUNKS);
      const to = Math.min(position + count, (slab + 1) * SLAB_CHUNKS);
      this.#live[slab]! -= to - from;
      assert(this.#live[slab]! >= 0, 'a chunk is discarded once');
      if (this.#live[slab] === 0) this.#release(slab);
      else this.#pool.discard(this.placeOf(from), (to - from) * CHUNK);
      from = to;
    }
  }

  #release(slab: number): void {
    this.#pool.release(this.#slabs[slab]!);
    this.#slabs[slab] = NO_MEMORY;
  }

  /** Gives all memory back. */
  async close(reactor: Reactor): Promise<void> {
    let released = 0;
    for (const [slab, at] of this.#slabs.entries()) {
      if (at === NO_MEMORY) continue;
      this.#release(slab);
      if (++released % RELEASED_AT_ONCE === 0) await completed((c) => void reactor.timer(0, c));
    }
  }
}
