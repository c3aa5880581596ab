/** Opens the places that diff storage may lie in: a new or empty file, an unnamed file in a directory, an
 *  unused kernel device, or memory. Exclusively: nothing that somebody else uses, or that has content. */

import fs from 'node:fs';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { onTmpfs } from '../io/files.ts';
import { memoryFile } from '../io/sys.ts';

/** The path that means chunks kept in memory. */
export const MEMORY_STORAGE = ':memory:';

export interface StoragePlace {
  readonly fd: number;
  /** A file of ours with a name, to be removed at the end. */
  readonly owned: string | null;
  /** Space is reserved by fallocate; elsewhere writing takes it. */
  readonly reserves: boolean;
  /** What the place itself can hold at most; Infinity where it does not say. */
  readonly sizeBytes: number;
}

const { O_RDWR, O_CREAT, O_EXCL } = fs.constants;
/** __O_TMPFILE | O_DIRECTORY. */
const O_TMPFILE = 0x400000 | fs.constants.O_DIRECTORY;

/** Errors: ENOENT, EACCES, EEXIST (a file with content), EBUSY (a device in use). */
export function openStoragePlace(path: string, action: string): StoragePlace {
  if (path === MEMORY_STORAGE) {
    return { fd: memoryFile('blksnap-diff'), owned: null, reserves: false, sizeBytes: Infinity };
  }
  try {
    const stat = fs.statSync(path, { throwIfNoEntry: false });
    if (stat?.isBlockDevice()) return openStorageDevice(path);
    if (stat?.isDirectory()) {
      return { fd: openUnnamed(path), owned: null, reserves: reservesSpace(path), sizeBytes: Infinity };
    }
    if (stat !== undefined && (!stat.isFile() || stat.size > 0)) {
      throw new BlksnapError('EEXIST', `${action}: it has content; name a new file, an empty one, or a directory`);
    }
    const fd = fs.openSync(path, O_RDWR | (stat === undefined ? O_CREAT | O_EXCL : 0), 0o600);
    return { fd, owned: stat === undefined ? path : null, reserves: reservesSpace(path), sizeBytes: Infinity };
  } catch (cause) {
    throw cause instanceof BlksnapError ? cause : toBlksnapError(cause, action);
  }
}

export function closeStoragePlace({ fd, owned }: StoragePlace): void {
  fs.closeSync(fd);
  if (owned !== null) fs.rmSync(owned, { force: true });
}

function openStorageDevice(path: string): StoragePlace {
  const fd = fs.openSync(path, O_RDWR | O_EXCL);
  const sectors = fs.readFileSync(`/sys/class/block/${fs.realpathSync(path).split('/').at(-1)}/size`, 'utf8');
  return { fd, owned: null, reserves: false, sizeBytes: Number(sectors) * 512 };
}

/** On tmpfs nothing is reserved: that would zero memory, which is better left until it is needed. */
function reservesSpace(path: string): boolean {
  return !onTmpfs(path);
}

/** A file without a name, gone with its descriptor. */
function openUnnamed(directory: string): number {
  try {
    return fs.openSync(directory, O_TMPFILE | O_RDWR, 0o600);
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code !== 'EOPNOTSUPP' && code !== 'EISDIR' && code !== 'ENOTSUP') throw cause;
    const name = `${directory}/.blksnap-diff-${process.pid}-${Date.now()}`;
    const fd = fs.openSync(name, O_RDWR | O_CREAT | O_EXCL, 0o600);
    fs.unlinkSync(name);
    return fd;
  }
}
