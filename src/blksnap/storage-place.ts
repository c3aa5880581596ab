/** Opens the places that diff storage may lie in: a new or empty file, an unnamed file in a directory, an
 *  unused kernel device, or memory. Exclusively: nothing that somebody else uses, or that has content. */

import fs from 'node:fs';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { onTmpfs, openUnnamed } from '../io/files.ts';
import { memoryFile } from '../io/sys.ts';

/** The path that means chunks kept in memory. */
export const MEMORY_STORAGE = ':memory:';

export interface StoragePlace {
  readonly fd: number;
  /** A file of ours with a name, to be removed at the end. */
  readonly owned: string | null;
  /** Of a file, space is reserved by fallocate. In memory (also tmpfs) that would zero what is better left
   *  until it is needed; what is there is read at once. */
  readonly kind: 'memory' | 'file' | 'device';
  /** What the place itself can hold at most; Infinity where it does not say. */
  readonly sizeBytes: number;
}

const { O_RDWR, O_CREAT, O_EXCL } = fs.constants;

/** Errors: ENOENT, EACCES, EEXIST (a file with content), EINVAL (neither file, directory nor block device), EBUSY
 *  (a device in use). */
export function openStoragePlace(path: string, action: string): StoragePlace {
  if (path === MEMORY_STORAGE) {
    return { fd: memoryFile('blksnap-diff'), owned: null, kind: 'memory', sizeBytes: Infinity };
  }
  try {
    const stat = fs.statSync(path, { throwIfNoEntry: false });
    if (stat?.isBlockDevice()) return openStorageDevice(path);
    if (stat?.isDirectory()) {
      return { fd: openUnnamed(path), owned: null, kind: onTmpfs(path) ? 'memory' : 'file', sizeBytes: Infinity };
    }
    if (stat?.isFile() === false) {
      throw new BlksnapError('EINVAL', `${action}: want a directory, a new or empty file, or an unused block device`);
    }
    if (stat !== undefined && stat.size > 0) {
      throw new BlksnapError('EEXIST', `${action}: it has content; name a new file, an empty one, or a directory`);
    }
    const fd = fs.openSync(path, O_RDWR | (stat === undefined ? O_CREAT | O_EXCL : 0), 0o600);
    return {
      fd,
      owned: stat === undefined ? path : null,
      kind: onTmpfs(path) ? 'memory' : 'file',
      sizeBytes: Infinity,
    };
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
  return { fd, owned: null, kind: 'device', sizeBytes: Number(sectors) * 512 };
}
