/** Opens the places that diff storage may lie in: a new or empty file, an unnamed file in a directory, an
 *  unused kernel device, or memory. Exclusively: nothing that somebody else uses, or that has content. */

import fs from 'node:fs';
import { sysfsDirectory } from './origin-identity.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { isKernelFile, onTmpfs, openUnnamed } from '../io/files.ts';
import { ALLOCATE_PUNCH_HOLE, completed } from '../io/reactor.ts';
import type { Reactor } from '../io/reactor.ts';
import { memoryFile } from '../io/sys.ts';

/** The path that means chunks kept in memory. */
export const MEMORY_STORAGE = ':memory:';

/** Those that outlive the process. */
export type PlaceKind = 'file' | 'device';

export interface StoragePlace {
  readonly fd: number;
  /** A file of ours with a name, to be removed at the end. */
  readonly owned: string | null;
  /** An empty file of somebody else's, which is to be empty again at the end. */
  readonly given: boolean;
  /** Of a file, space is reserved by fallocate. In memory (also tmpfs) that would zero what is better left
   *  until it is needed; what is there is read at once. */
  readonly kind: 'memory' | PlaceKind;
  /** What the place itself can hold at most; Infinity where it does not say. */
  readonly sizeBytes: number;
}

const { O_RDWR, O_CREAT, O_EXCL } = fs.constants;

/** Errors: ENOENT, EACCES, EEXIST (a file with content), EINVAL (neither file, directory nor block device), EBUSY
 *  (a device in use). */
export function openStoragePlace(path: string, action: string): StoragePlace {
  if (path === MEMORY_STORAGE) {
    return { fd: memoryFile('blksnap-diff'), owned: null, given: false, kind: 'memory', sizeBytes: Infinity };
  }
  try {
    const stat = fs.statSync(path, { throwIfNoEntry: false });
    if (stat?.isBlockDevice()) return openStorageDevice(path);
    if (stat?.isDirectory() && !isKernelFile(path)) {
      const kind = onTmpfs(path) ? 'memory' : 'file';
      return { fd: openUnnamed(path), owned: null, given: false, kind, sizeBytes: Infinity };
    }
    if (stat !== undefined && (!stat.isFile() || isKernelFile(path))) {
      throw new BlksnapError('EINVAL', `${action}: want a directory, a new or empty file, or an unused block device`);
    }
    if (stat !== undefined && stat.size > 0) {
      throw new BlksnapError('EEXIST', `${action}: it has content; name a new file, an empty one, or a directory`);
    }
    const fd = fs.openSync(path, O_RDWR | (stat === undefined ? O_CREAT | O_EXCL : 0), 0o600);
    return {
      fd,
      owned: stat === undefined ? path : null,
      given: stat !== undefined,
      kind: onTmpfs(path) ? 'memory' : 'file',
      sizeBytes: Infinity,
    };
  } catch (cause) {
    throw cause instanceof BlksnapError ? cause : toBlksnapError(cause, action);
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
  if (given && !keep) {
    const { size } = fs.fstatSync(fd);
    if (size > 0) await completed((c) => reactor.allocate(fd, ALLOCATE_PUNCH_HOLE, 0, size, c));
    try {
      fs.ftruncateSync(fd, 0);
    } catch {
      // Its file system is broken, or made read-only: who gave the file finds content in it.
    }
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
    return { fd, owned: owned ? path : null, given: !owned, kind: 'file', sizeBytes: Infinity };
  } catch (cause) {
    throw cause instanceof BlksnapError ? cause : toBlksnapError(cause, action);
  }
}

function openStorageDevice(path: string): StoragePlace {
  const fd = fs.openSync(path, O_RDWR | O_EXCL);
  try {
    const sectors = fs.readFileSync(`${sysfsDirectory(fs.fstatSync(fd).rdev)}/size`, 'utf8');
    return { fd, owned: null, given: false, kind: 'device', sizeBytes: Number(sectors) * 512 };
  } catch (cause) {
    fs.closeSync(fd);
    throw cause;
  }
}
