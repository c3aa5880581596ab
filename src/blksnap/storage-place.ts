/** Opens the places that diff storage may lie in: a new, empty or preallocated file, an unnamed file in a directory, an
 *  unused kernel device, or memory. Exclusively: nothing that somebody else uses, or that has content. */

import fs from 'node:fs';
import { dirname } from 'node:path';
import { lockImage } from '../block/locks.ts';
import { sysfsDirectory } from './origin-identity.ts';
import { refuseContent, refuseContentHere, refused } from './storage-content.ts';
import { loopsOver } from './underlying.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { isKernelFile, onTmpfs, openUnnamed } from '../io/files.ts';
import { ALLOCATE_PUNCH_HOLE, ALLOCATE_RESERVE, completed } from '../io/reactor.ts';
import type { Reactor } from '../io/reactor.ts';
import type { SlabPool } from '../io/slab-pool.ts';
import { ffiAvailable, memoryFile } from '../io/sys.ts';

/** The path that means chunks kept in memory. */
export const MEMORY_STORAGE = ':memory:';

/** Those that outlive the process. */
export type PlaceKind = 'file' | 'device';

/** A file without content, as it was found. */
interface GivenFile {
  readonly size: number;
  /** All of it had space. */
  readonly reserved: boolean;
}

export interface StoragePlace {
  readonly fd: number;
  /** A file of ours with a name, to be removed at the end. */
  readonly owned: string | null;
  /** A file of somebody else's, which is to be as it was again at the end. */
  readonly given: GivenFile | null;
  /** Of a file, space is reserved by fallocate. In memory (also tmpfs) that would zero what is better left
   *  until it is needed; what is there is read at once. */
  readonly kind: 'memory' | PlaceKind;
  /** What the place itself can hold at most; Infinity where it does not say. */
  readonly sizeBytes: number;
  /** Memory that is used before the file. */
  readonly slabs?: SlabPool;
}

const { O_RDONLY, O_RDWR, O_CREAT, O_EXCL } = fs.constants;
const { R_OK, W_OK, X_OK } = fs.constants;
const EMPTY: GivenFile = { size: 0, reserved: false };

/** `emptyOnly`: a file that has a size is refused, whatever is in it.
 *  Errors: ENOENT, EACCES, EEXIST (a file with content), EINVAL (neither file, directory nor block device), EBUSY
 *  (a device or a file in use). */
export async function openStoragePlace(
  reactor: Reactor,
  path: string,
  action: string,
  { emptyOnly }: { readonly emptyOnly: boolean },
): Promise<StoragePlace> {
  try {
    switch (typeOf(path, action)) {
      case 'memory':
        return memoryPlace(reactor);
      case 'device':
        return openStorageDevice(path);
      case 'directory':
        return { fd: openUnnamed(path), owned: null, given: null, kind: kindAt(path), sizeBytes: Infinity };
      case 'new':
        return openNewFile(path, action);
      case 'given':
        return await openGivenFile(reactor, path, { action, emptyOnly });
    }
  } catch (cause) {
    throw cause instanceof BlksnapError ? cause : toBlksnapError(cause, action);
  }
}

function memoryPlace({ slabs }: Reactor): StoragePlace {
  return { fd: memoryFile('blksnap-diff'), owned: null, given: null, kind: 'memory', sizeBytes: Infinity, slabs };
}

/** Tells of a place that will be used later what is wrong with it, as far as that can be seen without touching it.
 *  Errors: as openStoragePlace. */
export async function checkStoragePlace(path: string, action: string): Promise<void> {
  try {
    switch (typeOf(path, action)) {
      case 'memory':
        return;
      case 'device':
        fs.accessSync(path, R_OK | W_OK);
        return;
      case 'directory':
        fs.accessSync(path, W_OK | X_OK);
        return;
      case 'new':
        fs.accessSync(`${dirname(path)}/.`, W_OK | X_OK);
        return;
      case 'given':
        fs.accessSync(path, R_OK | W_OK);
        await closingOnFailure(fs.openSync(path, O_RDONLY), async (fd) => {
          await refuseContentHere(fd, action);
          fs.closeSync(fd);
        });
    }
  } catch (cause) {
    throw cause instanceof BlksnapError ? cause : toBlksnapError(cause, action);
  }
}

/** Errors: EINVAL; ENOENT for a name in /dev that no device has. */
function typeOf(path: string, action: string): 'memory' | 'device' | 'directory' | 'new' | 'given' {
  if (path === MEMORY_STORAGE) return 'memory';
  const stat = fs.statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) {
    if (isKernelFile(dirname(path))) throw wrongKind(action);
    if (inDevices(dirname(path))) throw new BlksnapError('ENOENT', `${action}: there is no such device`);
    return 'new';
  }
  if (stat.isBlockDevice()) return 'device';
  if (stat.isDirectory() && !isKernelFile(path)) return 'directory';
  if (stat.isFile() && !isKernelFile(path)) return 'given';
  throw wrongKind(action);
}

function wrongKind(action: string): BlksnapError {
  return new BlksnapError('EINVAL', `${action}: want a directory, a new or unused file, or an unused block device`);
}

/** Whether it is on the file system of /dev, where a new file would fill memory under the name of a device. */
function inDevices(directory: string): boolean {
  const [devices, root, there] = ['/dev', '/', directory].map(
    (path) => fs.statSync(path, { throwIfNoEntry: false })?.dev,
  );
  return devices !== root && there === devices;
}

function kindAt(path: string): 'memory' | 'file' {
  return onTmpfs(path) ? 'memory' : 'file';
}

/** Locked: as long as nothing is stored in it, it looks unused. */
function openNewFile(path: string, action: string): StoragePlace {
  const fd = fs.openSync(path, O_RDWR | O_CREAT | O_EXCL, 0o600);
  try {
    const busy = lockFailure(fd, path, action);
    if (busy !== null) throw busy;
    return { fd, owned: path, given: null, kind: kindAt(path), sizeBytes: Infinity };
  } catch (cause) {
    fs.closeSync(fd);
    fs.rmSync(path, { force: true });
    throw cause;
  }
}

/** Somebody's, who may have preallocated it. It may also be a disk that nobody has written to yet, so it must not be
 *  in use by anybody. Its size limits nothing. */
async function openGivenFile(
  reactor: Reactor,
  path: string,
  { action, emptyOnly }: { readonly action: string; readonly emptyOnly: boolean },
): Promise<StoragePlace> {
  return await closingOnFailure(fs.openSync(path, O_RDWR), async (fd) => {
    // Content is the plainer reason, of a disk that is in use too; what has none now must be locked before it is looked at.
    const busy = lockFailure(fd, path, action);
    const { size, blocks } = fs.fstatSync(fd);
    if (size > 0) {
      if (emptyOnly || !ffiAvailable()) throw refused(action, 'it is not empty');
      const [loop] = loopsOver(path);
      if (loop !== undefined)
        throw new BlksnapError('EBUSY', `${action}: loop device ${loop} writes to it; detach it with losetup -d first`);
      await refuseContent(reactor, fd, action);
    }
    if (busy !== null) throw busy;
    const given = { size, reserved: size > 0 && blocks * 512 >= size };
    return { fd, owned: null, given, kind: kindAt(path), sizeBytes: Infinity };
  });
}

/** Locks a file for as long as it is open; null, or EBUSY. */
function lockFailure(fd: number, path: string, action: string): BlksnapError | null {
  try {
    lockImage(fd, path, { write: true });
    return null;
  } catch (cause) {
    return toBlksnapError(cause, action);
  }
}

async function closingOnFailure<T>(fd: number, use: (fd: number) => Promise<T>): Promise<T> {
  try {
    return await use(fd);
  } catch (cause) {
    fs.closeSync(fd);
    throw cause;
  }
}

/** Leaves the place as it was found; with `keep`, as it is. What is freed may be much: not on this thread, where the
 *  reactor can. */
export async function releaseStoragePlace(
  reactor: Reactor,
  { fd, owned, given }: StoragePlace,
  keep: boolean,
): Promise<void> {
  if (owned !== null && !keep) fs.rmSync(owned, { force: true });
  if (given !== null && !keep) {
    const { size } = fs.fstatSync(fd);
    const punched = size > 0 ? await completed((c) => reactor.allocate(fd, ALLOCATE_PUNCH_HOLE, 0, size, c)) : 0;
    try {
      if (punched < 0) fs.ftruncateSync(fd, 0);
      fs.ftruncateSync(fd, given.size);
    } catch {
      // Its file system is broken, or made read-only: who gave the file finds content in it.
    }
    if (given.reserved) await completed((c) => reactor.allocate(fd, ALLOCATE_RESERVE, 0, given.size, c));
  }
  await completed((c) => reactor.closeFile(fd, c));
}

/** The path at which a piece of storage has a name, for a persistent snapshot. Errors: EINVAL for what no other process, or no
 *  next start of the machine, would find there. */
export function namedPath(path: string, { id, piece }: { readonly id: string; readonly piece: number }): string {
  const next = 'name a directory, a new file or a device that a restart leaves as it is, with --storage';
  const refuse = (why: string): BlksnapError =>
    new BlksnapError('EINVAL', `Cannot keep a persistent snapshot in "${path}": ${why}; ${next}`);
  if (path === MEMORY_STORAGE) throw refuse('memory ends with the daemon');
  if (fs.statSync(path, { throwIfNoEntry: false })?.isBlockDevice() === true) return path;
  if (onTmpfs(path)) throw refuse('it is on tmpfs, which ends with the machine');
  return fs.statSync(path, { throwIfNoEntry: false })?.isDirectory() === true
    ? `${path}/blksnap-${id}${piece === 0 ? '' : `-${piece}`}.diff`
    : path;
}

/** Opens a place with content once more. Errors: ENOENT, EACCES, EBUSY; EBADMSG for what is no such place now. */
export function reopenStoragePlace(
  path: string,
  expected: { readonly kind: PlaceKind; readonly owned: boolean },
): StoragePlace {
  const action = `Cannot use "${path}" as diff storage again`;
  try {
    const stat = fs.statSync(path);
    if (expected.kind === 'device' ? !stat.isBlockDevice() : !stat.isFile())
      throw new BlksnapError('EBADMSG', `${action}: it is not the ${expected.kind} that it was`);
    if (expected.kind === 'device') return openStorageDevice(path);
    const { owned } = expected;
    const fd = fs.openSync(path, O_RDWR);
    return { fd, owned: owned ? path : null, given: owned ? null : EMPTY, kind: 'file', sizeBytes: Infinity };
  } catch (cause) {
    throw cause instanceof BlksnapError ? cause : toBlksnapError(cause, action);
  }
}

function openStorageDevice(path: string): StoragePlace {
  const fd = fs.openSync(path, O_RDWR | O_EXCL);
  try {
    const sectors = fs.readFileSync(`${sysfsDirectory(fs.fstatSync(fd).rdev)}/size`, 'utf8');
    return { fd, owned: null, given: null, kind: 'device', sizeBytes: Number(sectors) * 512 };
  } catch (cause) {
    fs.closeSync(fd);
    throw cause;
  }
}
