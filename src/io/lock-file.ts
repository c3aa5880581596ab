/** A lock that ends with its process, however that ends.
 *
 *  An open-file-description lock on a file that stays, so that nobody ever has to judge whether a lock
 *  is stale; the file's content tells people who holds it. Where the system has no such locks, the
 *  content names the process, and the lock is held while that process lives. */

import fs from 'node:fs';
import { BlksnapError, ERRNO, errnoError, toBlksnapError } from '../util/errors.ts';
import { fcntl, ffiAvailable } from './sys.ts';

const F_OFD_SETLK = 37;
const F_WRLCK = 1;
/** struct flock of 64-bit Linux: type and whence (16 bits each), start, length, pid. Zeros are "the whole file". */
const FLOCK_BYTES = 32;

export interface FileLock {
  /** Safe to call twice. */
  release(): void;
}

export interface LockFileOptions {
  /** What the file says of its holder; the first number in it is the process's. */
  readonly holder: string;
  /** Words of the error when the file cannot be opened: `Cannot lock …`. */
  readonly action: string;
  /** The message of the error when somebody has the lock; `holder` is what they wrote, or ''. */
  readonly busy: (holder: string) => string;
}

/** Errors: EBUSY when somebody has the lock; those of opening the file. */
export function lockFile(file: string, options: LockFileOptions): FileLock {
  let fd: number;
  try {
    fd = fs.openSync(file, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600);
  } catch (cause) {
    throw toBlksnapError(cause, options.action);
  }
  try {
    const taken = ffiAvailable() ? takenByKernel(fd, options.action) : takenByProcess(file);
    if (taken) throw new BlksnapError('EBUSY', options.busy(fs.readFileSync(file, 'utf8').trim()));
    fs.ftruncateSync(fd);
    writeHolder(fd, options.holder);
  } catch (cause) {
    fs.closeSync(fd);
    throw toBlksnapError(cause, options.action);
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

/** Where the kernel keeps the lock, who holds it is only told to people: a full file system must not keep us from what
 *  may give it space. */
function writeHolder(fd: number, holder: string): void {
  try {
    fs.writeSync(fd, `${holder}\n`, 0);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOSPC' || !ffiAvailable()) throw cause;
  }
}

function takenByKernel(fd: number, action: string): boolean {
  const flock = new Uint8Array(FLOCK_BYTES);
  new Int16Array(flock.buffer)[0] = F_WRLCK;
  const result = fcntl(fd, F_OFD_SETLK, flock);
  if (result === -ERRNO.EAGAIN || result === -ERRNO.EACCES) return true;
  if (result < 0) throw errnoError(-result, action);
  return false;
}

function takenByProcess(file: string): boolean {
  const pid = Number(/\d+/.exec(fs.readFileSync(file, 'utf8'))?.[0] ?? 0);
  if (pid === 0 || pid === process.pid) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (cause) {
    return (cause as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}
