/** Files that hold a secret: a key, a token. What others can read is no secret, and is refused. */

import fs from 'node:fs';
import { BlksnapError, toBlksnapError } from './errors.ts';

/** The most that a key, a list of keys or a token needs. */
const LIMIT_BYTES = 1024 * 1024;
const OTHERS = 0o077;

/** The content. No message ever holds any of it. Errors: EACCES when other users may read or write the file; EFBIG;
 *  those of open. */
export function readSecret(file: string, what: string): string {
  const action = `Cannot use ${what} "${file}"`;
  let fd: number;
  try {
    fd = fs.openSync(file, 'r');
  } catch (cause) {
    throw toBlksnapError(cause, action);
  }
  try {
    const { mode, size } = fs.fstatSync(fd);
    if ((mode & OTHERS) !== 0) {
      const octal = (mode & 0o777).toString(8).padStart(4, '0');
      throw new BlksnapError('EACCES', `${action}: its mode ${octal} lets others at it; want 0600, as by chmod 600`);
    }
    if (size > LIMIT_BYTES) throw new BlksnapError('EFBIG', `${action}: ${size} bytes, want at most ${LIMIT_BYTES}`);
    return fs.readFileSync(fd, 'utf8');
  } catch (cause) {
    throw cause instanceof BlksnapError ? cause : toBlksnapError(cause, action);
  } finally {
    fs.closeSync(fd);
  }
}
