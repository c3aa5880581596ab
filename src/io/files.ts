/** Whole ranges of files through a reactor, for slow paths: loops over short results, and errors that
 *  name the file. What names a file here is its descriptor and, for the messages, its path. */

import { randomUUID } from 'node:crypto';
import fs from 'node:fs';
import { dirname } from 'node:path';
import { BlksnapError, ERRNO, errnoError } from '../util/errors.ts';
import { NO_MEMORY } from './arena.ts';
import type { Arena } from './arena.ts';
import { completed } from './reactor.ts';
import type { Reactor } from './reactor.ts';

/** Reads until `length` bytes are there or the file ends. Resolves with the count. */
export async function readWhole(
  reactor: Reactor,
  file: OpenFile,
  at: number,
  length: number,
  offset: number,
): Promise<number> {
  let done = 0;
  while (done < length) {
    const result = await completed((c) => reactor.read(file.fd, at + done, length - done, offset + done, c));
    if (result < 0) throw errnoError(-result, `Cannot read "${file.path}" at ${offset + done}`);
    if (result === 0) break;
    done += result;
  }
  return done;
}

export async function writeWhole(
  reactor: Reactor,
  file: OpenFile,
  at: number,
  length: number,
  offset: number,
): Promise<void> {
  let done = 0;
  while (done < length) {
    const result = await completed((c) => reactor.write(file.fd, at + done, length - done, offset + done, false, c));
    if (result <= 0)
      throw errnoError(result === 0 ? ERRNO.EIO : -result, `Cannot write "${file.path}" at ${offset + done}`);
    done += result;
  }
}

export interface OpenFile {
  readonly fd: number;
  readonly path: string;
}

/** Borrows arena memory, waiting for it if need be. Errors: ENOMEM when the arena can never lend as much. */
export async function borrow(arena: Arena, length: number): Promise<number> {
  if (length > arena.largest) {
    throw new BlksnapError(
      'ENOMEM',
      `Cannot borrow ${length} bytes: the arena lends at most ${arena.largest} at once; give it more memory`,
    );
  }
  for (;;) {
    const at = arena.allocate(length);
    if (at !== NO_MEMORY) return at;
    await new Promise<void>((resolve) => arena.whenFreed(resolve));
  }
}

const TMPFS_MAGIC = 0x01021994;

/** Whether the path, or the place where it would be, is on tmpfs: its data is always in memory. */
export function onTmpfs(path: string): boolean {
  const existing = fs.existsSync(path) ? path : dirname(path);
  return fs.statfsSync(existing).type === TMPFS_MAGIC;
}

const KERNEL_MAGICS = new Set([0x9fa0, 0x62656572]); // procfs, sysfs

/** Whether what is at the path is the kernel's own words, and no file with data, whatever it looks like. */
export function isKernelFile(path: string): boolean {
  return KERNEL_MAGICS.has(fs.statfsSync(path).type);
}

/** How much the file system there has left for its users; Infinity where it does not say. */
export function freeBytes(path: string): number {
  try {
    const { bavail, bsize } = fs.statfsSync(path);
    return bavail * bsize;
  } catch {
    return Infinity;
  }
}

const { O_RDWR, O_CREAT, O_EXCL, O_DIRECTORY } = fs.constants;
/** __O_TMPFILE | O_DIRECTORY. */
const O_TMPFILE = 0x400000 | O_DIRECTORY;

/** A file without a name, gone with its descriptor. */
export function openUnnamed(directory: string): number {
  try {
    return fs.openSync(directory, O_TMPFILE | O_RDWR, 0o600);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code !== 'EOPNOTSUPP' && code !== 'ENOTSUP' && code !== 'EISDIR' && code !== 'EINVAL') throw cause;
    // The file system has no unnamed files: one whose name is taken away at once.
    const name = `${directory}/.blksnap-${randomUUID()}`;
    const fd = fs.openSync(name, O_RDWR | O_CREAT | O_EXCL, 0o600);
    fs.unlinkSync(name);
    return fd;
  }
}
