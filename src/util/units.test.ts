import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { alignDown, alignUp, formatSeconds, formatSize, parseSize } from './units.ts';

describe('parseSize', () => {
  it.each([
    ['0', 0],
    ['512', 512],
    ['4K', 4096],
    ['4k', 4096],
    ['1.5G', 1.5 * 2 ** 30],
    ['10GiB', 10 * 2 ** 30],
    ['10 MB', 10 * 2 ** 20],
    [' 2T ', 2 * 2 ** 40],
    ['7P', 7 * 2 ** 50],
  ])('reads %s', (text, bytes) => expect(parseSize(text)).toBe(bytes));

  it.each(['', 'K', '-1', '1e3', '1.5', '0.3K', '8P', '1X', '1 2', '0x10', 'NaN', 'Infinity'])('refuses "%s"', (text) =>
    expect(() => parseSize(text)).toThrow(expect.objectContaining({ code: 'EINVAL' }) as Error),
  );
});

describe('formatSize', () => {
  it.each([
    [0, '0 B'],
    [1023, '1023 B'],
    [1024, '1.00 KiB'],
    [1536, '1.50 KiB'],
    [10 * 2 ** 20, '10.0 MiB'],
    [500 * 2 ** 30, '500 GiB'],
    [3 * 2 ** 50, '3.00 PiB'],
  ])('writes %d', (bytes, text) => expect(formatSize(bytes)).toBe(text));
});

describe('formatSeconds', () => {
  it.each([
    [0.000012, '12 µs'],
    [0.012, '12 ms'],
    [1.25, '1.3 s'],
    [75, '1 min 15 s'],
    [3725, '1 h 2 min'],
  ])('writes %d', (seconds, text) => expect(formatSeconds(seconds)).toBe(text));
});

describe('alignment', () => {
  it('goes to the nearest multiple below and above', () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), fc.integer({ min: 1, max: 2 ** 26 }), (value, alignment) => {
        fc.pre(value < 2 ** 52);
        const [down, up] = [alignDown(value, alignment), alignUp(value, alignment)];
        expect([down % alignment, up % alignment]).toEqual([0, 0]);
        expect(down <= value && value - down < alignment && up >= value && up - value < alignment).toBe(true);
      }),
    );
  });
});
