/** The buffer arena: one region of memory from which everything on the data path borrows.
 *
 *  A buddy allocator over blocks of 4 KiB: sizes are rounded up to a power of two, every buffer
 *  is aligned to its size (at least to the page, as O_DIRECT asks), and free neighbours are joined
 *  when a larger one is wanted. Bounded: when nothing fits, `allocate` says so and the caller stops taking in
 *  work until `whenFreed` calls it; memory is limited by configuration, never by a client.
 *
 *  Invariant: every place is in exactly one free list or lent out once. */

import { assert } from '../util/assert.ts';

export const ARENA_BLOCK = 4096;
/** What `allocate` returns when no free run is large enough. */
export const NO_MEMORY = -1;

const FREE = 0x80;
const INSIDE = 0xff;

export class Arena {
  /** The whole region, byte by byte. `at` values index it. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly view: DataView<ArrayBuffer>;
  /** Address of the first byte in the process's memory; 0 when the driver needs none. */
  readonly address: number;
  readonly size: number;
  /** The largest length that can ever be allocated. */
  readonly largest: number;

  /** Place of block 0. */
  readonly #start: number;
  /** Per block that starts a buffer or a free run: its order, with FREE set when free. Elsewhere INSIDE. */
  readonly #state: Uint8Array;
  /** Per order: stack of free block numbers. */
  readonly #free: number[][];
  readonly #orders: number;
  #lent = 0;
  /** Something was released since the last join. */
  #unjoined = false;
  #waiters: Array<() => void> = [];
  #waking = false;

  /** `memory` must be a multiple of 4 KiB; a size that is not a power of two is used in full all the same.
   *  With `part`, the arena lends only that part of the memory: a reserve cut out of a larger
   *  arena, whose places mean the same in both. */
  constructor(memory: ArrayBuffer, address: number, part?: { readonly at: number; readonly length: number }) {
    this.bytes = new Uint8Array(memory);
    this.view = new DataView(memory);
    this.address = address;
    this.size = part?.length ?? memory.byteLength;
    this.#start = part?.at ?? 0;
    assert(this.size >= ARENA_BLOCK && this.size % ARENA_BLOCK === 0, 'arena size is whole blocks');
    const blocks = this.size / ARENA_BLOCK;
    this.#orders = 32 - Math.clz32(blocks);
    this.largest = ARENA_BLOCK * 2 ** (this.#orders - 1);
    this.#state = new Uint8Array(blocks).fill(INSIDE);
    this.#free = Array.from({ length: this.#orders }, () => []);
    // Cut the region into naturally aligned power-of-two runs, largest first.
    for (let block = 0, order = this.#orders - 1; order >= 0; order--) {
      if (block + 2 ** order <= blocks) {
        this.#state[block] = FREE | order;
        this.#free[order]!.push(block);
        block += 2 ** order;
      }
    }
  }

  /** Bytes lent out, rounded up as allocated. */
  get lentBytes(): number {
    return this.#lent * ARENA_BLOCK;
  }

  /** Lends at least `length` bytes and returns their place, or NO_MEMORY. The content is arbitrary. */
  allocate(length: number): number {
    const order = length <= ARENA_BLOCK ? 0 : 32 - Math.clz32(Math.ceil(length / ARENA_BLOCK) - 1);
    const block = this.#take(order);
    if (block >= 0) return this.#start + block * ARENA_BLOCK;
    if (!this.#unjoined || order === 0 || order >= this.#orders) return NO_MEMORY;
    this.#join();
    const joined = this.#take(order);
    return joined >= 0 ? this.#start + joined * ARENA_BLOCK : NO_MEMORY;
  }

  /** Takes a lent buffer back. Waiters run before this returns. */
  release(at: number): void {
    const block = (at - this.#start) / ARENA_BLOCK;
    const order = this.#state[block]!;
    assert(order < FREE, 'arena buffer was lent out');
    this.#lent -= 2 ** order;
    this.#state[block] = FREE | order;
    this.#free[order]!.push(block);
    this.#unjoined = true;
    if (this.#waiters.length > 0 && !this.#waking) this.#wake();
  }

  #take(order: number): number {
    for (let from = order; from < this.#orders; from++) {
      const list = this.#free[from]!;
      if (list.length === 0) continue;
      const block = list.pop()!;
      for (let upper = from - 1; upper >= order; upper--) {
        const buddy = block + 2 ** upper;
        this.#state[buddy] = FREE | upper;
        this.#free[upper]!.push(buddy);
      }
      this.#state[block] = order;
      this.#lent += 2 ** order;
      return block;
    }
    return -1;
  }

  /** Joins free neighbours. Done only when an allocation found nothing, so that the common
   *  traffic of equal sizes costs a push and a pop. */
  #join(): void {
    const state = this.#state;
    for (let order = 0; order < this.#orders - 1; order++) {
      const step = 2 ** (order + 1);
      for (let block = 0; block + step <= state.length; block += step) {
        if (state[block] === (FREE | order) && state[block + step / 2] === (FREE | order)) {
          state[block] = FREE | (order + 1);
          state[block + step / 2] = INSIDE;
        }
      }
    }
    for (const list of this.#free) list.length = 0;
    for (let block = 0; block < state.length; block++) {
      const value = state[block]!;
      if (value !== INSIDE && value >= FREE) this.#free[value & ~FREE]!.push(block);
    }
    this.#unjoined = false;
  }

  /** Calls `waiter` once, at the next release. The waiter tries again and may wait again. */
  whenFreed(waiter: () => void): void {
    this.#waiters.push(waiter);
  }

  #wake(): void {
    this.#waking = true;
    let lentBefore: number;
    do {
      lentBefore = this.#lent;
      const waiters = this.#waiters;
      this.#waiters = [];
      for (const waiter of waiters) waiter();
      // A waiter that gave memory back may have made room for one that had just tried in vain.
    } while (this.#lent < lentBefore && this.#waiters.length > 0);
    this.#waking = false;
  }
}
