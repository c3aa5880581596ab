import fc from 'fast-check';
import { expect, test } from 'vitest';
import { alignOut, gapsBetween, totalBytes } from './ranges.ts';

test('aligned ranges cover what was asked for, whole granules of it, and nothing twice', () => {
  const range = fc.record({ offset: fc.nat(1200), length: fc.nat(200) });
  fc.assert(
    fc.property(fc.array(range), fc.integer({ min: 1, max: 64 }), (ranges, granule) => {
      const size = 1000;
      const wanted = new Set<number>();
      for (const { offset, length } of ranges) {
        for (let at = offset; at < Math.min(offset + length, size); at++) wanted.add(Math.floor(at / granule));
      }
      const aligned = alignOut(ranges, granule, size);
      const got = aligned.flatMap(({ offset, length }) =>
        Array.from({ length: Math.ceil(length / granule) }, (_, index) => offset / granule + index),
      );
      expect(got).toEqual([...wanted].toSorted((a, b) => a - b));
      expect(aligned.every(({ offset, length }) => (offset + length) % granule === 0 || offset + length === size)).toBe(
        true,
      );
      // Neighbours are joined: between two there is a gap.
      expect(
        aligned.every(
          ({ offset }, index) => index === 0 || offset > aligned[index - 1]!.offset + aligned[index - 1]!.length,
        ),
      ).toBe(true);
      expect(totalBytes(aligned)).toBeLessThanOrEqual(size);
    }),
  );
});

test.each([
  [[], [[0, 10]]],
  [[[0, 10]], []],
  [
    [
      [2, 3],
      [5, 1],
      [8, 1],
    ],
    [
      [0, 2],
      [6, 2],
      [9, 1],
    ],
  ],
])('what %j leave out of 10 bytes', (ranges, gaps) => {
  const asRanges = (pairs: number[][]) => pairs.map(([offset, length]) => ({ offset: offset!, length: length! }));
  expect(gapsBetween(asRanges(ranges), 10)).toEqual(asRanges(gaps));
});
