import { expect, test } from 'vitest';
import { GIB, KIB, MIB } from '../util/units.ts';
import { DoneRanges } from './done-ranges.ts';
import { gapsBetween } from './ranges.ts';
import type { ByteRange } from './ranges.ts';

const BLOCK = 64 * KIB;

async function toldOf(size: number, ranges: readonly ByteRange[]): Promise<ByteRange[]> {
  const told: ByteRange[] = [];
  const done = new DoneRanges(async (range) => void told.push(range), size);
  await done.start(gapsBetween(ranges, size));
  for (const range of ranges) await done.add(range);
  return told;
}

const blocksAt = (...offsets: number[]): ByteRange[] => offsets.map((offset) => ({ offset, length: BLOCK }));

test('small gaps go with what comes after them, the last is told of at the start', async () => {
  expect(await toldOf(20 * MIB, blocksAt(0, MIB, MIB + BLOCK, 10 * MIB))).toEqual([
    { offset: 10 * MIB + BLOCK, length: 10 * MIB - BLOCK },
    { offset: 0, length: BLOCK },
    { offset: BLOCK, length: MIB },
    { offset: MIB + BLOCK, length: BLOCK },
    { offset: MIB + 2 * BLOCK, length: 9 * MIB - BLOCK },
  ]);
});

test('only so much of a large disk waits to be told of, however small the gaps', async () => {
  const stride = 50 * MIB;
  const size = 1024 * GIB;
  const ranges = blocksAt(...Array.from({ length: Math.floor(size / stride) }, (_, i) => i * stride));
  const told = await toldOf(size, ranges);
  expect(told.reduce((sum, { length }) => sum + length, 0)).toBe(size);
  const atStart = told.slice(0, -ranges.length).reduce((sum, { length }) => sum + length, 0);
  expect(size - atStart).toBeLessThanOrEqual(GIB + ranges.length * BLOCK);
});

test('a large gap is told of at the start', async () => {
  expect((await toldOf(4 * GIB, blocksAt(MIB, 2 * GIB)))[0]).toEqual({
    offset: MIB + BLOCK,
    length: 2 * GIB - MIB - BLOCK,
  });
});
