import { spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { lockDisk } from './lock.ts';

let directory: string;
beforeEach(() => void (directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-lock-'))));
afterEach(() => fs.rmSync(directory, { recursive: true }));

test('a second holder is refused, and told who the first is', () => {
  const lock = lockDisk(directory, 'backup');
  expect(() => lockDisk(directory, 'prune')).toThrow(
    expect.objectContaining({
      code: 'EBUSY',
      message: expect.stringMatching(`Cannot start prune.*backup by process ${process.pid} on`),
    }),
  );
  lock.release();
  lock.release();
  lockDisk(directory, 'prune').release();
});

test('the lock of a killed process is gone with it', async () => {
  const module = JSON.stringify(new URL('lock.ts', import.meta.url).href);
  const script = [
    `const { lockDisk } = await import(${module});`,
    `lockDisk(${JSON.stringify(directory)}, 'backup');`,
    `console.log('locked');`,
    `setInterval(() => {}, 1000);`,
  ].join('\n');
  const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await new Promise((resolve) => child.stdout.once('data', resolve));
  expect(() => lockDisk(directory, 'prune')).toThrow(`process ${child.pid}`);
  const ended = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGKILL');
  await ended;
  lockDisk(directory, 'prune').release();
});

test('a directory that is not there is named', () => {
  expect(() => lockDisk(path.join(directory, 'none'), 'backup')).toThrow(expect.objectContaining({ code: 'ENOENT' }));
});
