/** Reads text files that may not be ours: no more of them than such a file can sensibly hold, and no pipes, which would
 *  wait for their other end. */

import fs from 'node:fs';
import { BlksnapError } from './errors.ts';

/** Errors: those of open and read; EINVAL no regular file; EFBIG more than `limitBytes`. */
export function readText(file: string, limitBytes: number): string {
  const fd = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  try {
    const stat = fs.fstatSync(fd);
    if (!stat.isFile()) throw new BlksnapError('EINVAL', `Cannot read "${file}": it is no regular file`);
    if (stat.size > limitBytes)
      throw new BlksnapError('EFBIG', `Cannot read "${file}": it has ${stat.size} bytes, want at most ${limitBytes}`);
    return fs.readFileSync(fd, 'utf8');
  } finally {
    fs.closeSync(fd);
  }
}
