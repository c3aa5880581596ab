/** Opens the storage of an overlay: a sparse file without a name, gone with the last descriptor however
 *  the process ends. */

import fs from 'node:fs';
import { openUnnamed } from '../io/files.ts';
import type { Reactor } from '../io/reactor.ts';
import { toBlksnapError } from '../util/errors.ts';
import type { BlockDevice } from './device.ts';
import { fileDevice } from './file-device.ts';

/** An empty storage of `size` bytes on the file system of `directory`. Errors: ENOENT, ENOTDIR, EACCES, ENOSPC, EFBIG. */
export function openOverlayStorage(directory: string, size: number, reactor: Reactor): BlockDevice {
  let fd = -1;
  try {
    fd = openUnnamed(directory);
    fs.ftruncateSync(fd, size);
    return fileDevice(fd, `unnamed file in ${directory}`, { reactor });
  } catch (cause) {
    if (fd >= 0) fs.closeSync(fd);
    throw toBlksnapError(cause, `Cannot keep what is written in "${directory}"`);
  }
}
