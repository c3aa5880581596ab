/** The lock of a disk's backup directory: one backup or prune at a time, on this machine or, where
 *  the file system carries locks, on others that share the directory.
 *
 *  An open-file-description lock on a file that stays: it goes with its holder, however that
 *  ends, so nobody ever has to guess whether a lock is stale. What the file says is for people.
 *  Where the system has no such lock, the file's existence is the lock, and a person removes it. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fcntl, ffiAvailable } from '../io/sys.ts';
import { BlksnapError, ERRNO, errnoError, toBlksnapError } from '../util/errors.ts';

const LOCK_NAME = '.lock';
const F_OFD_SETLK = 37;
const F_WRLCK = 1;
/** struct flock of 64-bit Linux: type and whence (16 bits each), start and length, pid. Zero is "the whole file". */
const FLOCK_BYTES = 32;

export interface Lock {
  /** Safe to call twice. */
  release(): void;
}

/** Locks a disk's directory. `action` names what for: `backup`. Errors: EBUSY, naming the holder. */
export function lockDisk(diskPath: string, action: string): Lock {
  const file = path.join(diskPath, LOCK_NAME);
  const byExistence = !ffiAvailable();
  const fd = open(file, byExistence, action);
  try {
    if (!byExistence) takeLock(fd, file, action);
    fs.ftruncateSync(fd);
    fs.writeSync(fd, `${action} by process ${process.pid} on ${os.hostname()} since ${new Date().toISOString()}\n`, 0);
  } catch (cause) {
    fs.closeSync(fd);
    throw toBlksnapError(cause);
  }
  let held = true;
  return {
    release() {
      if (!held) return;
      held = false;
      if (byExistence) fs.unlinkSync(file);
      fs.closeSync(fd);
    },
  };
}

function open(file: string, byExistence: boolean, action: string): number {
  const { O_RDWR, O_CREAT, O_EXCL } = fs.constants;
  try {
    return fs.openSync(file, O_RDWR | O_CREAT | (byExistence ? O_EXCL : 0), 0o600);
  } catch (cause) {
    if (!byExistence || (cause as NodeJS.ErrnoException).code !== 'EEXIST') {
      throw toBlksnapError(cause, `Cannot lock the backup directory for ${action}`);
    }
    throw new BlksnapError('EBUSY', `${busy(file, action)}; if that process is gone, remove "${file}"`);
  }
}

function takeLock(fd: number, file: string, action: string): void {
  const flock = new Uint8Array(FLOCK_BYTES);
  new Int16Array(flock.buffer)[0] = F_WRLCK;
  const result = fcntl(fd, F_OFD_SETLK, flock);
  if (result === -ERRNO.EAGAIN || result === -ERRNO.EACCES)
    throw new BlksnapError('EBUSY', `${busy(file, action)}; try again when it is done`);
  if (result < 0) throw errnoError(-result, `Cannot lock "${file}"`);
}

function busy(file: string, action: string): string {
  let holder = '';
  try {
    holder = fs.readFileSync(file, 'utf8').trim();
  } catch {
    // Whoever holds it may just be letting go; the words are all that is lost.
  }
  return `Cannot start ${action} in "${path.dirname(file)}": it is in use (${holder || 'holder unknown'})`;
}
