/** Where the journal of a persistent snapshot lies: an open file with a name, `ID.journal`. */

import fs from 'node:fs';
import path from 'node:path';
import { toBlksnapError } from '../util/errors.ts';
import { makeDirectories, syncDirectory } from '../util/directories.ts';

export const JOURNAL_SUFFIX = '.journal';

export interface JournalPlace {
  readonly fd: number;
  readonly path: string;
  /** The name is on stable storage. */
  syncName(): void;
  close(): void;
  /** Takes the name away. */
  remove(): void;
}

const { O_RDWR, O_CREAT, O_EXCL } = fs.constants;

/** Errors: EEXIST, EACCES, ENOSPC. */
export function createJournalFile(file: string): JournalPlace {
  try {
    makeDirectories(path.dirname(file), 0o700);
    return journalFile(fs.openSync(file, O_RDWR | O_CREAT | O_EXCL, 0o600), file);
  } catch (cause) {
    throw toBlksnapError(cause, `Cannot make journal "${file}"`);
  }
}

/** Errors: ENOENT, EACCES. */
export function openJournalFile(file: string): JournalPlace {
  try {
    return journalFile(fs.openSync(file, O_RDWR), file);
  } catch (cause) {
    throw toBlksnapError(cause, `Cannot open journal "${file}"`);
  }
}

function journalFile(fd: number, file: string): JournalPlace {
  return {
    fd,
    path: file,
    syncName: () => syncDirectory(path.dirname(file)),
    close: () => fs.closeSync(fd),
    remove: () => fs.rmSync(file, { force: true }),
  };
}
