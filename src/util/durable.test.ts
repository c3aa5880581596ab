import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { makeDirectoryDurably, replaceFile } from './durable.ts';

let directory: string;
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-durable-'));
});
afterEach(() => fs.rmSync(directory, { recursive: true, force: true }));

it('replaces a file as a whole, or leaves nothing beside what cannot be replaced', () => {
  const file = path.join(directory, 'file');
  replaceFile(file, 'old');
  replaceFile(file, 'new');
  expect([fs.readFileSync(file, 'utf8'), fs.readdirSync(directory)]).toEqual(['new', ['file']]);

  const taken = path.join(directory, 'taken');
  fs.mkdirSync(taken);
  expect(() => replaceFile(taken, 'text')).toThrow(/EISDIR/);
  expect(fs.readdirSync(directory)).toEqual(['file', 'taken']);
});

it.runIf(fs.existsSync('/proc/self/fd'))(
  'makes directories whose names are durable, also where somebody else made some',
  () => {
    const real = fs.fsyncSync;
    const synced: string[] = [];
    const spy = vi.spyOn(fs, 'fsyncSync').mockImplementation((fd) => {
      synced.push(path.relative(directory, fs.readlinkSync(`/proc/self/fd/${fd}`)));
      real(fd);
    });
    makeDirectoryDurably(path.join(directory, 'a/b/c'));
    expect(synced.splice(0)).toEqual(['', 'a', 'a/b']);
    // By one who died before it was synced, perhaps.
    makeDirectoryDurably(path.join(directory, 'a/b/c'));
    expect(synced).toEqual(['a/b']);
    spy.mockRestore();
    expect(fs.statSync(path.join(directory, 'a/b')).mode & 0o777).toBe(0o700);
  },
);
