import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { lockDirectory } from './lock.ts';

describe('lockDirectory', () => {
  let directory: string;
  let file: string;

  beforeEach(() => {
    directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-lock-'));
    file = path.join(directory, 'daemon.lock');
  });
  afterEach(() => fs.rmSync(directory, { recursive: true }));

  it.skipIf(process.platform !== 'linux')('is held by one at a time, and says by whom', () => {
    const lock = lockDirectory(file);
    expect(() => lockDirectory(file)).toThrow(`another daemon (process ${process.pid}) holds "${file}"`);
    lock.release();
    lock.release();
    lockDirectory(file).release();
  });

  it('takes over what a killed daemon left', () => {
    fs.writeFileSync(file, '999999999\n');
    const lock = lockDirectory(file);
    expect(fs.readFileSync(file, 'utf8')).toBe(`${process.pid}\n`);
    lock.release();
  });

  it('says what is wrong with the directory', () => {
    expect(() => lockDirectory(path.join(directory, 'missing', 'daemon.lock'))).toThrow(/ENOENT/);
  });
});
