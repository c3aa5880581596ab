/** Tells what will not be read (again): gaps between ranges, and ranges that are done.
 *
 *  A message takes a daemon longer than what it tells, so small gaps go with what comes after them. What was saved of them may
 *  stay stored until then, and is copied when somebody writes there: only so much of the disk may wait. */

import { GIB } from '../util/units.ts';
import type { ByteRange } from './ranges.ts';

/** Of all gaps together. */
const WAITING_BYTES = GIB;
/** How many are told of at a time. */
const GAPS_AT_ONCE = 32;

export class DoneRanges {
  readonly #tell: (range: ByteRange) => Promise<void>;
  readonly #size: number;
  /** Where the gaps end that wait. */
  readonly #waiting = new Set<number>();
  /** All before was told of, but for a gap right before what comes next. */
  #told = 0;

  /** `size` is the disk's, bytes. */
  constructor(tell: (range: ByteRange) => Promise<void>, size: number) {
    this.#tell = tell;
    this.#size = size;
  }

  /** Tells of all gaps but the smallest. Nothing comes after the last. */
  async start(gaps: readonly ByteRange[]): Promise<void> {
    let bytes = 0;
    for (const { offset, length } of gaps.toSorted((a, b) => a.length - b.length)) {
      if (offset + length === this.#size) continue;
      bytes += length;
      if (bytes > WAITING_BYTES) break;
      this.#waiting.add(offset + length);
    }
    const now = gaps.filter(({ offset, length }) => !this.#waiting.has(offset + length));
    for (let at = 0; at < now.length; at += GAPS_AT_ONCE)
      await Promise.all(now.slice(at, at + GAPS_AT_ONCE).map((gap) => this.#tell(gap)));
  }

  /** In the order of offsets. */
  add({ offset, length }: ByteRange): Promise<void> {
    const from = this.#waiting.has(offset) ? this.#told : offset;
    this.#told = offset + length;
    return this.#tell({ offset: from, length: this.#told - from });
  }
}
