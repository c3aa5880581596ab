/** Random choices from a seed, of the kinds that inputs are made of. */

import { Prng } from '../../src/util/prng.ts';

/** Where lengths and offsets go wrong. */
export const EDGES = [
  0,
  1,
  7,
  8,
  255,
  511,
  512,
  4095,
  4096,
  65_535,
  65_536,
  2 ** 20,
  0x7fff_ffff,
  0x8000_0000,
  0xffff_fe00,
  0xffff_ffff,
] as const;

export class Draw extends Prng {
  one<T>(choices: readonly T[]): T {
    return choices[this.below(choices.length)]!;
  }

  /** From `min` to `max`. */
  between(min: number, max: number): number {
    return min + this.below(max - min + 1);
  }

  noise(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.fill(bytes.subarray());
    return bytes;
  }

  list<T>(limit: number, make: (index: number) => T): T[] {
    return Array.from({ length: this.below(limit + 1) }, (_, index) => make(index));
  }
}
