/** Files that are there whole after a crash, or not at all: temporary name, sync, rename, sync of
 *  the directory. Synchronous, since these are small and run on reactor threads too. */

import fs from 'node:fs';
import path from 'node:path';
import { makeDirectories, syncDirectory } from './directories.ts';

/** Ends the name of a file that is not complete yet. */
export const PARTIAL = '.partial';

/** Puts `text` in place of the file's content, all or nothing. Where that fails, nothing else stays either. */
export function replaceFile(file: string, text: string): void {
  const partial = file + PARTIAL;
  try {
    writeDurably(partial, text);
    renameDurably(partial, file);
  } catch (cause) {
    fs.rmSync(partial, { force: true });
    throw cause;
  }
}

/** Writes a file, which is no other's, and returns when its content is on stable storage; its name may not be yet. */
export function writeDurably(file: string, text: string): void {
  const fd = fs.openSync(file, 'w', 0o600);
  try {
    fs.writeFileSync(fd, text);
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
}

/** Renames within a directory, and returns when the new name is on stable storage. */
export function renameDurably(from: string, to: string): void {
  fs.renameSync(from, to);
  syncDirectory(path.dirname(to));
}

/** Makes a directory and those above it, for their owner alone, and returns when their names are on stable storage. */
export function makeDirectoryDurably(directory: string): void {
  const above = path.dirname(directory);
  if (!fs.existsSync(above)) makeDirectoryDurably(above);
  // Whoever made one that is there may have died before its name was.
  if (makeDirectories(directory, 0o700) || isReadable(above)) syncDirectory(above);
}

function isReadable(directory: string): boolean {
  try {
    fs.accessSync(directory, fs.constants.R_OK);
    return true;
  } catch {
    return false;
  }
}

/** Bytes of a file, or null when there is none. */
export function fileSize(file: string): number | null {
  return fs.statSync(file, { throwIfNoEntry: false })?.size ?? null;
}
