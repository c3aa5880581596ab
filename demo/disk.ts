/** The demo's disk: a file with an ext4 filesystem and files in it, made without root and without mounting. */

import { execFileSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';

import { findProgram } from '../scripts/debian.mjs';
import { Prng } from '../src/util/prng.ts';
import { MIB } from '../src/util/units.ts';

const DOCUMENTS = 160;
const PICTURES = 60;
const DATABASE_BYTES = 128 * MIB;
const BLOCK_BYTES = 4096;
const WORDS = 'block chunk disk snapshot image origin filter tracker point range flush write'.split(' ');

export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

export interface DemoDisk {
  /** Files in the filesystem. */
  readonly files: number;
  /** Where on the disk the database lies: writing there changes data, and leaves the filesystem whole. */
  readonly database: readonly ByteRange[];
}

function program(name: string): string {
  const found = findProgram(name);
  if (found === undefined) throw new Error(`${name} is not installed; it makes the filesystem (package e2fsprogs)`);
  return found;
}

/** About a MiB that compresses as text does. */
function textOf(seed: number): string {
  const random = new Prng(seed);
  return Array.from({ length: 150_000 }, () => WORDS[random.below(WORDS.length)]).join(' ');
}

/** Documents that compress, pictures that do not, and one database. Returns the number of files. */
function makeFiles(tree: string): number {
  for (const name of ['documents', 'pictures']) fs.mkdirSync(path.join(tree, name), { recursive: true });
  const texts = Array.from({ length: 8 }, (_, seed) => textOf(seed));
  for (let i = 0; i < DOCUMENTS; i++) {
    fs.writeFileSync(path.join(tree, `documents/${i}.txt`), `Document ${i}\n${texts[i % texts.length]}`);
  }
  const noise = Buffer.alloc(2 * MIB);
  for (let i = 0; i < PICTURES; i++) fs.writeFileSync(path.join(tree, `pictures/${i}.raw`), randomFillSync(noise));
  const fd = fs.openSync(path.join(tree, 'database'), 'w');
  for (let at = 0; at < DATABASE_BYTES; at += noise.length) fs.writeSync(fd, randomFillSync(noise));
  fs.closeSync(fd);
  return DOCUMENTS + PICTURES + 1;
}

/** Where the data of a file of the filesystem lies on the disk. */
function placesOf(disk: string, file: string): ByteRange[] {
  const list = execFileSync(program('debugfs'), ['-R', `dump_extents -l ${file}`, disk], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  // Level, Entries, Logical from - to, Physical from - to, Length, Flags
  const rows = list.matchAll(/^\s*\d+\/\s*\d+\s+\d+\/\s*\d+\s+\d+\s+-\s+\d+\s+(\d+)\s+-\s+\d+\s+(\d+)/gm);
  return [...rows].map(([, first, blocks]) => ({
    offset: Number(first) * BLOCK_BYTES,
    length: Number(blocks) * BLOCK_BYTES,
  }));
}

/** Makes the disk. `scratch` is a directory for the files until they are on it. */
export function makeDisk(disk: string, sizeBytes: number, scratch: string): DemoDisk {
  const tree = path.join(scratch, 'files');
  const files = makeFiles(tree);
  fs.writeFileSync(disk, '');
  fs.truncateSync(disk, sizeBytes);
  execFileSync(program('mkfs.ext4'), ['-q', '-F', '-b', String(BLOCK_BYTES), '-d', tree, disk], { stdio: 'pipe' });
  fs.rmSync(tree, { recursive: true });
  const database = placesOf(disk, '/database');
  const bytes = database.reduce((sum, { length }) => sum + length, 0);
  if (bytes !== DATABASE_BYTES) throw new Error(`the database has ${bytes} bytes on the disk, want ${DATABASE_BYTES}`);
  return { files, database };
}

/** Whether the filesystem on a disk is whole, by e2fsck's judgement. */
export function filesystemIsWhole(disk: string): boolean {
  try {
    execFileSync(program('e2fsck'), ['-f', '-n', disk], { stdio: 'pipe' });
    return true;
  } catch {
    return false;
  }
}
