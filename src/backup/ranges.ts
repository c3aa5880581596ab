/** Ranges of bytes of a disk, and their arithmetic. */

import { alignDown, alignUp } from '../util/units.ts';

export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

/** The ranges in order, aligned out to `granule`, clipped to `size`, those that touch joined. */
export function alignOut(ranges: readonly ByteRange[], granule: number, size: number): ByteRange[] {
  const joined: Array<{ offset: number; length: number }> = [];
  for (const range of ranges.toSorted((a, b) => a.offset - b.offset)) {
    const offset = alignDown(range.offset, granule);
    const end = Math.min(alignUp(range.offset + range.length, granule), size);
    if (range.length === 0 || range.offset >= size) continue;
    const last = joined.at(-1);
    if (last !== undefined && last.offset + last.length >= offset)
      last.length = Math.max(last.length, end - last.offset);
    else joined.push({ offset, length: end - offset });
  }
  return joined;
}

export function totalBytes(ranges: readonly ByteRange[]): number {
  return ranges.reduce((sum, range) => sum + range.length, 0);
}

/** What of [0, size) the ranges, which are in order, leave out. */
export function gapsBetween(ranges: readonly ByteRange[], size: number): ByteRange[] {
  const gaps: ByteRange[] = [];
  let from = 0;
  for (const { offset, length } of [...ranges, { offset: size, length: 0 }]) {
    if (offset > from) gaps.push({ offset: from, length: offset - from });
    from = Math.max(from, offset + length);
  }
  return gaps;
}
