/** Where a file has data and where holes, by lseek. */

import fs from 'node:fs';
import { ENXIO, SEEK_DATA, SEEK_HOLE, ffiAvailable, seek } from '../io/sys.ts';
import { BlksnapError, ERRNO, errnoError } from '../util/errors.ts';
import { pushExtent } from './device.ts';
import type { Extent, HoleFinder } from './device.ts';

/** Extents per answer: the seeks block the thread. */
const EXTENTS_LIMIT = 512;

/** As BlockDevice.extents. `size` is the device's: a file that has shrunk is an error, not a hole. */
export function fileExtents(
  fd: number,
  range: { readonly name: string; readonly size: number; readonly offset: number; readonly length: number },
): Extent[] {
  const { name, size, offset, length } = range;
  const list: Extent[] = [];
  if (!ffiAvailable()) return [{ length, hole: false, zero: false }];
  const actual = fs.fstatSync(fd).size;
  if (actual < size) {
    throw new BlksnapError(
      'EIO',
      `Cannot read the extents of "${name}": it has shrunk to ${actual} bytes, want ${size}`,
    );
  }
  const end = offset + length;
  for (let at = offset; at < end && list.length < EXTENTS_LIMIT;) {
    const data = seekTo(fd, at, SEEK_DATA, end, name);
    if (data > at) pushExtent(list, data - at, true, true);
    const hole = data < end ? seekTo(fd, data, SEEK_HOLE, end, name) : end;
    if (hole > data) pushExtent(list, hole - data, false, false);
    at = hole;
  }
  return list;
}

/** A file's holes by lseek. What lies beyond the end of a file that has shrunk is no hole but lost.
 *
 *  Seeking the end of data takes as long as there is data to pass, so the last data found is
 *  remembered. A hole that is made in it later goes unseen, which costs a read and nothing else. */
export class FileHoles implements HoleFinder {
  readonly #fd: number;
  readonly #size: () => number;
  #dataAt = 0;
  #dataEnd = 0;

  /** `size`: the device's. */
  constructor(fd: number, size: () => number) {
    this.#fd = fd;
    this.#size = size;
  }

  dataFrom(offset: number, end: number): number {
    if (this.#isKnownData(offset)) return offset;
    const found = seek(this.#fd, offset, SEEK_DATA);
    if (found >= 0) return Math.min(found, end);
    return found === -ENXIO && fs.fstatSync(this.#fd).size >= this.#size() ? end : offset;
  }

  dataUntil(offset: number, end: number): number {
    if (!this.#isKnownData(offset)) {
      this.#dataAt = offset;
      const found = seek(this.#fd, offset, SEEK_HOLE);
      this.#dataEnd = found > offset ? found : end;
    }
    return Math.min(this.#dataEnd, end);
  }

  #isKnownData(offset: number): boolean {
    return offset >= this.#dataAt && offset < this.#dataEnd;
  }
}

/** Where data (or a hole) begins, at most `end`. A file system that does not know has data only. */
function seekTo(
  fd: number,
  at: number,
  whence: typeof SEEK_DATA | typeof SEEK_HOLE,
  end: number,
  name: string,
): number {
  const found = seek(fd, at, whence);
  if (found >= 0) return Math.min(found, end);
  if (found === -ENXIO) return end;
  if (found === -ERRNO.EINVAL || found === -ERRNO.EOPNOTSUPP) return whence === SEEK_DATA ? at : end;
  throw errnoError(-found, `Cannot read the extents of "${name}" at ${at}`);
}
