/** Checksums of a stream by fixed ranges: one xxHash64 for each `rangeBytes`, so that a damaged range can
 *  be named. Against decay and mistakes, not against forgery. Does no I/O. */

import xxhash from 'xxhash-wasm';
import { assert } from './assert.ts';

export const CHECKSUM_RANGE_BYTES = 4 * 2 ** 20;

const { create64 } = await xxhash();
const ZEROES = new Uint8Array(65_536);

export class RangeChecksums {
  readonly #rangeBytes: number;
  readonly #done: string[] = [];
  #state = create64();
  #inRange = 0;
  #finished = false;

  constructor(rangeBytes: number = CHECKSUM_RANGE_BYTES) {
    assert(Number.isSafeInteger(rangeBytes) && rangeBytes > 0, 'a checksum range has bytes');
    this.#rangeBytes = rangeBytes;
  }

  update(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length;) {
      const length = Math.min(bytes.length - at, this.#rangeBytes - this.#inRange);
      this.#state.update(bytes.subarray(at, at + length));
      this.#inRange += length;
      at += length;
      if (this.#inRange === this.#rangeBytes) this.#endRange();
    }
  }

  updateZeroes(length: number): void {
    for (let left = length; left > 0; left -= ZEROES.length) {
      this.update(left < ZEROES.length ? ZEROES.subarray(0, left) : ZEROES);
    }
  }

  /** One checksum for each range, 16 hexadecimal digits; the last range may be short. Ends the stream. */
  finish(): string[] {
    assert(!this.#finished, 'checksums finish once');
    this.#finished = true;
    if (this.#inRange > 0) this.#endRange();
    return this.#done;
  }

  #endRange(): void {
    this.#done.push(this.#state.digest().toString(16).padStart(16, '0'));
    this.#state = create64();
    this.#inRange = 0;
  }
}
