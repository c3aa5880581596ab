/** Image locks that QEMU understands, so that a disk which a virtual machine uses cannot be attached, nor
 *  the other way round.
 *
 *  QEMU (block/file-posix.c) marks what it does with an image, and what it wants nobody else to do, by shared
 *  locks of single bytes: byte 100 + p for a permission p that is used, byte 200 + p for one that is denied
 *  to others. First all are taken, then it is seen whether somebody else denies what we use, or uses what we
 *  deny. The locks belong to the open file description (OFD): they go when the descriptor is closed, and two
 *  opens of one process conflict as two processes do. */

import os from 'node:os';
import { fcntl, ffiAvailable } from '../io/sys.ts';
import { BlksnapError, errnoError } from '../util/errors.ts';

const USED_BASE = 100; // RAW_LOCK_PERM_BASE
const DENIED_BASE = 200; // RAW_LOCK_SHARED_BASE

/** Bit numbers of QEMU's permissions (BLK_PERM_…). */
const CONSISTENT_READ = 0;
const WRITE = 1;
const RESIZE = 3;
const PERMISSION_NAMES: Record<number, string> = { [CONSISTENT_READ]: 'reads', [WRITE]: 'writes', [RESIZE]: 'resizes' };

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;

/** struct flock of 64-bit Linux: l_type, l_whence (16 bits each), l_start at 8, l_len at 16, l_pid at 24. */
function flock(type: number, start: number): DataView {
  const lock = new DataView(new ArrayBuffer(32));
  const littleEndian = os.endianness() === 'LE';
  lock.setInt16(0, type, littleEndian);
  lock.setBigInt64(8, BigInt(start), littleEndian);
  lock.setBigInt64(16, 1n, littleEndian);
  return lock;
}

function callLock(fd: number, command: number, lock: DataView, path: string): void {
  const result = fcntl(fd, command, new Uint8Array(lock.buffer));
  if (result < 0) throw errnoError(-result, `Cannot lock "${path}"`);
}

/** Whether somebody else holds a lock of the byte. */
function isLockedByOthers(fd: number, byte: number, path: string): boolean {
  const lock = flock(F_WRLCK, byte);
  callLock(fd, F_OFD_GETLK, lock, path);
  return lock.getInt16(0, os.endianness() === 'LE') !== F_UNLCK;
}

/** Locks an open image until its descriptor is closed: others may read it, but neither write nor resize.
 *  Errors: EBUSY when somebody else writes it, or denies what we want. The caller then closes the
 *  descriptor. Without Linux there are no such locks, and nothing is done. */
export function lockImage(fd: number, path: string, options: { readonly write: boolean }): void {
  if (!ffiAvailable()) return;
  const used = options.write ? [CONSISTENT_READ, WRITE] : [CONSISTENT_READ];
  const denied = [WRITE, RESIZE];
  for (const permission of used) callLock(fd, F_OFD_SETLK, flock(F_RDLCK, USED_BASE + permission), path);
  for (const permission of denied) callLock(fd, F_OFD_SETLK, flock(F_RDLCK, DENIED_BASE + permission), path);
  for (const permission of denied) {
    if (isLockedByOthers(fd, USED_BASE + permission, path))
      throw busy(path, `another program ${PERMISSION_NAMES[permission]} it`);
  }
  for (const permission of used) {
    if (isLockedByOthers(fd, DENIED_BASE + permission, path)) {
      throw busy(path, `another program has it and allows no other that ${PERMISSION_NAMES[permission]} it`);
    }
  }
}

function busy(path: string, why: string): BlksnapError {
  return new BlksnapError('EBUSY', `Cannot lock "${path}": ${why} (QEMU, or another blksnap); stop it first`);
}
