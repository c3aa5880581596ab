import { expect, test } from 'vitest';
import { isZero } from './zeroes.ts';

test('finds one set bit anywhere', () => {
  for (const length of [1, 2, 511, 4096, 65_536, 65_537, 200_000]) {
    const bytes = new Uint8Array(length);
    expect(isZero(bytes)).toBe(true);
    for (const at of [0, length - 1, length >> 1, length >> 2, Math.floor(length * 0.9)]) {
      bytes[at] = 1;
      expect(isZero(bytes), `byte ${at} of ${length}`).toBe(false);
      bytes[at] = 0;
    }
  }
  expect(isZero(new Uint8Array(0))).toBe(true);
});
