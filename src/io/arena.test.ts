import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ARENA_BLOCK, Arena, NO_MEMORY } from './arena.ts';

const arenaOf = (blocks: number): Arena => new Arena(new ArrayBuffer(blocks * ARENA_BLOCK), 0);

/** Bytes that a buffer of `length` really takes. */
function rounded(length: number): number {
  let size = ARENA_BLOCK;
  while (size < length) size *= 2;
  return size;
}

describe('Arena', () => {
  it('lends aligned places that do not overlap, and gets everything back', () => {
    const steps = fc.array(
      fc.record({ length: fc.integer({ min: 1, max: 40 * ARENA_BLOCK }), free: fc.boolean(), pick: fc.nat() }),
      {
        maxLength: 300,
      },
    );
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 100 }), steps, (blocks, list) => {
        const arena = arenaOf(blocks);
        const owner = new Array<number>(blocks).fill(0);
        const lent: Array<{ at: number; size: number }> = [];
        const giveBack = (index: number): void => {
          const [buffer] = lent.splice(index, 1);
          owner.fill(0, buffer!.at / ARENA_BLOCK, (buffer!.at + buffer!.size) / ARENA_BLOCK);
          arena.release(buffer!.at);
        };
        for (const [i, { length, free, pick }] of list.entries()) {
          if (free && lent.length > 0) {
            giveBack(pick % lent.length);
            continue;
          }
          const size = rounded(length);
          const at = arena.allocate(length);
          if (at === NO_MEMORY) {
            expect(hasRoom(owner, size / ARENA_BLOCK, arena.largest)).toBe(false);
            continue;
          }
          expect(at % size).toBe(0);
          expect(at + size).toBeLessThanOrEqual(arena.size);
          for (let block = at / ARENA_BLOCK; block < (at + size) / ARENA_BLOCK; block++) {
            expect(owner[block]).toBe(0);
            owner[block] = i + 1;
          }
          lent.push({ at, size });
          expect(arena.lentBytes).toBe(lent.reduce((sum, buffer) => sum + buffer.size, 0));
        }
        while (lent.length > 0) giveBack(0);
        expect(arena.lentBytes).toBe(0);
        expect(arena.allocate(arena.largest)).not.toBe(NO_MEMORY);
      }),
      { numRuns: 200 },
    );
  });

  it('uses all of a size that is not a power of two', () => {
    const arena = arenaOf(13);
    const places = new Set<number>();
    for (let at = arena.allocate(1); at !== NO_MEMORY; at = arena.allocate(1)) places.add(at);
    expect(places.size).toBe(13);
    expect(arena.largest).toBe(8 * ARENA_BLOCK);
  });

  it('refuses what can never fit', () => {
    const arena = arenaOf(4);
    expect(arena.allocate(5 * ARENA_BLOCK)).toBe(NO_MEMORY);
    expect(arena.allocate(2 ** 31)).toBe(NO_MEMORY);
    expect(arena.lentBytes).toBe(0);
  });

  it('refuses to take back what is not lent', () => {
    const arena = arenaOf(4);
    const at = arena.allocate(2 * ARENA_BLOCK);
    expect(() => arena.release(at + ARENA_BLOCK)).toThrow('lent');
    arena.release(at);
    expect(() => arena.release(at)).toThrow('lent');
    expect(() => arena.release(100 * ARENA_BLOCK)).toThrow('lent');
  });

  it('calls a waiter once, at the next release', () => {
    const arena = arenaOf(1);
    const at = arena.allocate(1);
    let calls = 0;
    arena.whenFreed(() => calls++);
    arena.release(at);
    arena.release(arena.allocate(1));
    expect(calls).toBe(1);
  });

  it('wakes a waiter again when one after it makes room', () => {
    const arena = arenaOf(2);
    const [first, second] = [arena.allocate(1), arena.allocate(1)];
    let large = NO_MEMORY;
    const wantLarge = (): void => {
      large = arena.allocate(2 * ARENA_BLOCK);
      if (large === NO_MEMORY) arena.whenFreed(wantLarge);
    };
    arena.whenFreed(wantLarge);
    arena.whenFreed(() => arena.release(second));
    arena.release(first);
    expect(large).not.toBe(NO_MEMORY);
  });

  it('does not spin for a waiter that gives back what it just took', () => {
    const arena = arenaOf(2);
    const [first, held] = [arena.allocate(1), arena.allocate(1)];
    let tries = 0;
    const wantTwo = (): void => {
      tries++;
      const one = arena.allocate(1);
      const other = arena.allocate(1);
      if (one !== NO_MEMORY && other !== NO_MEMORY) return;
      arena.release(one);
      arena.whenFreed(wantTwo);
    };
    arena.whenFreed(wantTwo);
    arena.release(first);
    expect(tries).toBe(1);
    arena.release(held);
    expect(tries).toBe(2);
  });

  it('lends only its part of a larger memory', () => {
    const whole = new ArrayBuffer(16 * ARENA_BLOCK);
    const arena = new Arena(whole, 0, { at: 8 * ARENA_BLOCK, length: 4 * ARENA_BLOCK });
    const places: number[] = [];
    for (let at = arena.allocate(1); at !== NO_MEMORY; at = arena.allocate(1)) places.push(at / ARENA_BLOCK);
    expect(places.toSorted((a, b) => a - b)).toEqual([8, 9, 10, 11]);
    for (const block of places) arena.release(block * ARENA_BLOCK);
    expect(arena.allocate(4 * ARENA_BLOCK)).toBe(8 * ARENA_BLOCK);
  });
});

/** Whether a naturally aligned run of free blocks exists (as a buddy allocator would find it). */
function hasRoom(owner: readonly number[], blocks: number, largest: number): boolean {
  if (blocks * ARENA_BLOCK > largest) return false;
  for (let start = 0; start + blocks <= owner.length; start += blocks) {
    if (owner.slice(start, start + blocks).every((other) => other === 0)) return true;
  }
  return false;
}
