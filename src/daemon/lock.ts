/** One daemon per directory: a lock that ends with its process, however that ends.
 *
 *  An open-file-description lock on a file that stays, so that nobody ever has to judge whether
 *  a lock is stale; the file tells people who holds it. Where the system has no such locks, the
 *  file names the process, and the lock is held while that process lives. */

import fs from 'node:fs';
import { ffiAvailable, fcntl } from '../io/sys.ts';
import { BlksnapError, ERRNO, errnoError, toBlksnapError } from '../util/errors.ts';

const F_OFD_SETLK = 37;
const F_WRLCK = 1;
/** struct flock of 64-bit Linux: type and whence (16 bits each), start, length, pid. Zeros are "the whole file". */
const FLOCK_BYTES = 32;

export interface DirectoryLock {
  /** Safe to call twice. */
  release(): void;
}

/** Errors: EBUSY, naming the process, when another daemon has the directory. */
export function lockDirectory(lockFile: string): DirectoryLock {
  let fd: number;
  try {
    fd = fs.openSync(lockFile, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600);
  } catch (cause) {
    throw toBlksnapError(cause, `Cannot lock the daemon's directory`);
  }
  try {
    if (ffiAvailable()) lockByKernel(fd, lockFile);
    else lockByProcess(lockFile);
    fs.ftruncateSync(fd);
    fs.writeSync(fd, `${process.pid}\n`, 0);
  } catch (cause) {
    fs.closeSync(fd);
    throw toBlksnapError(cause);
  }
  let held = true;
  return {
    release() {
      if (!held) return;
      held = false;
      fs.ftruncateSync(fd);
      fs.closeSync(fd);
    },
  };
}

function lockByKernel(fd: number, lockFile: string): void {
  const flock = new Uint8Array(FLOCK_BYTES);
  new Int16Array(flock.buffer)[0] = F_WRLCK;
  const result = fcntl(fd, F_OFD_SETLK, flock);
  if (result === -ERRNO.EAGAIN || result === -ERRNO.EACCES) throw taken(lockFile);
  if (result < 0) throw errnoError(-result, `Cannot lock "${lockFile}"`);
}

function lockByProcess(lockFile: string): void {
  const pid = holder(lockFile);
  if (pid === null || pid === process.pid) return;
  try {
    process.kill(pid, 0);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ESRCH') return;
  }
  throw taken(lockFile);
}

function holder(lockFile: string): number | null {
  const pid = Number.parseInt(fs.readFileSync(lockFile, 'utf8'), 10);
  return pid > 0 ? pid : null;
}

function taken(lockFile: string): BlksnapError {
  const pid = holder(lockFile);
  return new BlksnapError(
    'EBUSY',
    `Cannot start: another daemon${pid === null ? '' : ` (process ${pid})`} holds "${lockFile}"; ` +
      'stop it, or give this one another --dir',
  );
}
