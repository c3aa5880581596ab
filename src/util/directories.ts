/** Making directories, and syncing them. Not fs.mkdir's `recursive`: Node's never returns where the directory above is there and takes
 *  no new one, as /proc does. */

import fs from 'node:fs';
import path from 'node:path';

/** Makes a directory and those above it; returns whether it was missing. Errors: those of mkdir; ENOTDIR where
 *  something else is in the way. */
export function makeDirectories(directory: string, mode = 0o777): boolean {
  try {
    fs.mkdirSync(directory, mode);
    return true;
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === 'EEXIST') {
      if (fs.statSync(directory).isDirectory()) return false;
      throw Object.assign(new Error(`"${directory}" is there and no directory`, { cause }), { code: 'ENOTDIR' });
    }
    const above = path.dirname(directory);
    // What is above is there already, and it is to blame.
    if (code !== 'ENOENT' || above === directory || !makeDirectories(above, mode)) throw cause;
  }
  return makeDirectories(directory, mode);
}

/** The names in it are on stable storage. */
export function syncDirectory(directory: string): void {
  const fd = fs.openSync(directory, 'r');
  try {
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}
