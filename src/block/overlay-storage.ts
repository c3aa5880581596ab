/** Opens the storage of an overlay: a sparse file without a name, gone with the last descriptor however
 *  the process ends. */

import { randomUUID } from 'node:crypto';
import fs from 'node:fs';
import pathModule from 'node:path';
import type { Reactor } from '../io/reactor.ts';
import { toBlksnapError } from '../util/errors.ts';
import type { BlockDevice } from './device.ts';
import { fileDevice } from './file-device.ts';

const O_TMPFILE = 0o20000000 | fs.constants.O_DIRECTORY;

/** An empty storage of `size` bytes on the file system of `directory`. Errors: ENOENT, ENOTDIR, EACCES, ENOSPC, EFBIG. */
export function openOverlayStorage(directory: string, size: number, reactor: Reactor): BlockDevice {
  let fd = -1;
  try {
    fd = openUnnamed(directory);
    fs.ftruncateSync(fd, size);
    return fileDevice(fd, `unnamed file in ${directory}`, { reactor });
  } catch (cause) {
    if (fd >= 0) fs.closeSync(fd);
    throw toBlksnapError(cause, `Cannot make a storage in "${directory}"`);
  }
}

function openUnnamed(directory: string): number {
  try {
    return fs.openSync(directory, fs.constants.O_RDWR | O_TMPFILE, 0o600);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code !== 'EOPNOTSUPP' && code !== 'ENOTSUP' && code !== 'EISDIR' && code !== 'EINVAL') throw cause;
  }
  // The file system has no unnamed files: one whose name is taken away at once.
  const name = pathModule.join(directory, `.blksnap-overlay-${randomUUID()}`);
  const fd = fs.openSync(name, 'wx+', 0o600);
  fs.unlinkSync(name);
  return fd;
}
