import { expect, test } from 'vitest';
import { Prng } from './prng.ts';
import { RangeChecksums } from './checksum.ts';

function checksums(rangeBytes: number, ...pieces: Uint8Array[]): string[] {
  const sums = new RangeChecksums(rangeBytes);
  for (const piece of pieces) sums.update(piece);
  return sums.finish();
}

test('gives the published xxHash64 of known input', () => {
  expect(checksums(64)).toEqual([]);
  expect(checksums(64, new TextEncoder().encode('abc'))).toEqual(['44bc2cf5ad770999']);
});

test('does not depend on how the stream is cut', () => {
  const random = new Prng(1);
  const bytes = Uint8Array.from({ length: 10_000 }, () => random.u32());
  const whole = checksums(1000, bytes);
  expect(whole).toHaveLength(10);
  expect(checksums(1000, bytes.subarray(0, 1), bytes.subarray(1, 2999), bytes.subarray(2999))).toEqual(whole);
});

test('names exactly the range that differs', () => {
  const bytes = new Uint8Array(4096).fill(7);
  const before = checksums(1024, bytes);
  bytes[2048] = 8;
  expect(checksums(1024, bytes).map((sum, range) => sum === before[range])).toEqual([true, true, false, true]);
});

test('zeroes count as zero bytes', () => {
  const sums = new RangeChecksums(100_000);
  sums.updateZeroes(250_001);
  expect(sums.finish()).toEqual(checksums(100_000, new Uint8Array(250_001)));
});
