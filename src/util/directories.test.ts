import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { makeDirectories } from './directories.ts';

let root: string;
beforeEach(() => {
  root = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-directories-'));
});
afterEach(() => fs.rmSync(root, { recursive: true }));

it('makes what is missing, and says whether it was', () => {
  const deep = path.join(root, 'a/b/c');
  expect([makeDirectories(deep, 0o700), makeDirectories(deep), makeDirectories(root)]).toEqual([true, false, false]);
  expect(fs.statSync(path.join(root, 'a')).mode & 0o777).toBe(0o700);
});

it('refuses where a file is in the way', () => {
  const file = path.join(root, 'file');
  fs.writeFileSync(file, '');
  expect(() => makeDirectories(file)).toThrow(expect.objectContaining({ code: 'ENOTDIR' }));
  expect(() => makeDirectories(path.join(file, 'below'))).toThrow(expect.objectContaining({ code: 'ENOTDIR' }));
});

it.runIf(fs.existsSync('/proc/self'))('fails, and does not go on for ever, where no directory can be made', () => {
  expect(() => makeDirectories('/proc/none/below')).toThrow(expect.objectContaining({ code: 'ENOENT' }));
});
