/** Paths and names of disks, as people give them. */

import fs from 'node:fs';
import path from 'node:path';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { DISK_NAME } from './state.ts';

/** Two names of one file must not become two disks. */
export function realPath(given: string): string {
  try {
    return fs.realpathSync(given);
  } catch (cause) {
    const { code } = toBlksnapError(cause);
    if (code === 'ENOENT')
      throw new BlksnapError('ENOENT', `Cannot open "${given}": there is no such file or directory`);
    throw toBlksnapError(cause, `Cannot open "${given}"`);
  }
}

/** The name of a disk's partition. No disk has a slash in its own name. */
export function partitionName(disk: string, number: number): string {
  return `${disk}/${number}`;
}

/** The disk that a name is about: itself, or the one that the partition lies on. */
export function wholeDisk(name: string): string {
  return name.replace(/\/[1-9]\d{0,9}$/, '');
}

export function defaultName(real: string): string {
  return path.parse(real).name;
}

export function noSuchDisk(name: string, known: readonly string[]): BlksnapError {
  const there = known.toSorted().join(', ');
  const next = there === '' ? 'none is attached; attach one with `blksnap attach PATH`' : `there are ${there}`;
  return new BlksnapError('ENOENT', `No disk "${name}": ${next}`);
}

export function checkName(name: string, next: string): void {
  if (DISK_NAME.test(name)) return;
  throw new BlksnapError(
    'EINVAL',
    `Cannot use "${name}" as a disk's name: want letters, digits, ".", "_" and "-", a letter or digit first, at most 128; ${next}`,
  );
}
