/** Where a file's data lies on the device that its file system is on (the FIEMAP ioctl).
 *
 *  Linux, struct fiemap (linux/fiemap.h), native byte order: a header of 32 bytes, then extents of 56:
 *   header  0 start u64   8 length u64   16 flags u32   20 mapped u32   24 count u32
 *   extent  0 logical u64   8 physical u64   16 length u64   40 flags u32 */

import fs from 'node:fs';
import os from 'node:os';
import { ioctl } from '../io/sys.ts';
import { BlksnapError, errnoError, toBlksnapError } from '../util/errors.ts';

const FS_IOC_FIEMAP = 0xc020660b;
const FLAG_SYNC = 1;
const EXTENT_LAST = 1;
/** Nobody can say where it is (UNKNOWN, DELALLOC), or what is there is not the file's bytes (ENCODED). */
const EXTENT_PLACELESS = 2 | 4 | 8;
const HEADER = 32;
const EXTENT = 56;
const EXTENTS_PER_CALL = 512;

export interface FileMap {
  /** The device that the file system is on. */
  readonly major: number;
  readonly minor: number;
  /** Runs of bytes on that device, in the order of the file. */
  readonly runs: ReadonlyArray<{ readonly offset: number; readonly length: number }>;
}

/** Errors: ENOENT and the like; EOPNOTSUPP when the file system cannot say, or spans several devices. */
export function fileMap(path: string): FileMap {
  const action = `Cannot tell where "${path}" lies on its device`;
  let fd: number;
  try {
    fd = fs.openSync(path, 'r');
  } catch (cause) {
    throw toBlksnapError(cause, action);
  }
  try {
    const { dev } = fs.fstatSync(fd, { bigint: true });
    const major = Number(((dev >> 8n) & 0xfffn) | ((dev >> 32n) & 0xfffff000n));
    const minor = Number((dev & 0xffn) | ((dev >> 12n) & 0xffffff00n));
    if (major === 0) {
      throw new BlksnapError(
        'EOPNOTSUPP',
        `${action}: its file system is not on one block device; mark the ranges themselves`,
      );
    }
    return { major, minor, runs: readRuns(fd, action) };
  } finally {
    fs.closeSync(fd);
  }
}

function readRuns(fd: number, action: string): Array<{ offset: number; length: number }> {
  const little = os.endianness() === 'LE';
  const request = new DataView(new ArrayBuffer(HEADER + EXTENTS_PER_CALL * EXTENT));
  const runs: Array<{ offset: number; length: number }> = [];
  for (let start = 0n, last = false; !last;) {
    request.setBigUint64(0, start, little);
    request.setBigUint64(8, 0xffff_ffff_ffff_ffffn - start, little);
    request.setUint32(16, FLAG_SYNC, little);
    request.setUint32(24, EXTENTS_PER_CALL, little);
    const status = ioctl(fd, FS_IOC_FIEMAP, new Uint8Array(request.buffer));
    if (status < 0) throw errnoError(-status, action);
    const mapped = request.getUint32(20, little);
    last = mapped === 0;
    for (let i = 0; i < mapped; i++) {
      const at = HEADER + i * EXTENT;
      const flags = request.getUint32(at + 40, little);
      if ((flags & EXTENT_PLACELESS) !== 0) {
        throw new BlksnapError(
          'EOPNOTSUPP',
          `${action}: a part of it has no place of its own there (extent flags ${flags})`,
        );
      }
      const length = request.getBigUint64(at + 16, little);
      runs.push({ offset: Number(request.getBigUint64(at + 8, little)), length: Number(length) });
      start = request.getBigUint64(at, little) + length;
      last ||= (flags & EXTENT_LAST) !== 0;
    }
  }
  return runs;
}
