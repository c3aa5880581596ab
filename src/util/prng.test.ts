import { describe, expect, it } from 'vitest';
import { Prng } from './prng.ts';

describe('Prng', () => {
  it('repeats itself for a seed, and differs for others', () => {
    const take = (seed: number): number[] => {
      const random = new Prng(seed);
      return Array.from({ length: 100 }, () => random.u32());
    };
    expect(take(1)).toEqual(take(1));
    const firsts = new Set([0, 1, 2, 2 ** 32, 2 ** 40 + 1].map((seed) => take(seed).join()));
    expect(firsts.size).toBe(5);
  });

  it('stays below its limit and reaches all of it', () => {
    const random = new Prng(3);
    const seen = new Array<number>(10).fill(0);
    for (let i = 0; i < 10_000; i++) seen[random.below(10)]!++;
    expect(seen.every((count) => count > 850 && count < 1150)).toBe(true);
    expect(random.below(1)).toBe(0);
  });

  it('gives chances as asked', () => {
    const random = new Prng(4);
    let hits = 0;
    for (let i = 0; i < 10_000; i++) if (random.chance(0.25)) hits++;
    expect(hits).toBeGreaterThan(2300);
    expect(hits).toBeLessThan(2700);
    expect([random.chance(0), random.chance(1)]).toEqual([false, true]);
  });

  it('fills every byte', () => {
    const bytes = new Uint8Array(100_000);
    const random = new Prng(5);
    random.fill(bytes.subarray(0));
    const counts = new Array<number>(256).fill(0);
    for (const byte of bytes) counts[byte]!++;
    expect(Math.min(...counts)).toBeGreaterThan(250);
  });
});
