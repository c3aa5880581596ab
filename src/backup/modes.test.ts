/** Restore points hold whole disks: what is made for them is their owner's alone, whatever the umask allows. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { makeDirectoryDurably, replaceFile } from '../util/durable.ts';
import { writeSums } from './sums.ts';

let directory: string;

beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-modes-'));
});
afterEach(() => {
  fs.rmSync(directory, { recursive: true });
});

const modeOf = (file: string): string => (fs.statSync(file).mode & 0o777).toString(8);

it('directories have 0700, manifest and sums 0600, and a directory that was there keeps its mode', () => {
  fs.chmodSync(directory, 0o755);
  const disk = path.join(directory, 'backup', 'disk');
  makeDirectoryDurably(disk);
  makeDirectoryDurably(directory);
  expect([directory, path.dirname(disk), disk].map(modeOf)).toEqual(['755', '700', '700']);
  replaceFile(path.join(disk, 'manifest'), '{}');
  writeSums(disk, 'point', { fileBytes: 0, rangeBytes: 1, checksums: [] });
  expect(fs.readdirSync(disk).map((name) => modeOf(path.join(disk, name)))).toEqual(['600', '600']);
});
