import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';

let directory: string;

beforeEach(() => void (directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-'))));
afterEach(() => fs.rmSync(directory, { recursive: true }));

/** What a swap with a limit of 3 s comes to, in a process of its own, where dmsetup is this script. */
function swapBy(script: string): string {
  fs.writeFileSync(path.join(directory, 'dmsetup'), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  const module = JSON.stringify(new URL('dmsetup.ts', import.meta.url).href);
  const program = `const { swapTable } = await import(${module});
    await swapTable('vol', { timeoutMs: 3000 }).then(() => console.log('done'), ({ code, message }) => console.log(code, message));`;
  const words = ['--import', 'tsx', '--input-type=module', '-e', program];
  const env = { ...process.env, PATH: `${directory}:${process.env['PATH']}` };
  return spawnSync(process.execPath, words, { env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] }).stdout;
}

test('a swap that comes to no end is ended, and says what it waits for', () => {
  expect(swapBy('exec sleep 60')).toBe(
    'ETIMEDOUT Cannot swap the table of "vol": it took more than 3 s, as requests under way do not end; try again when they do\n',
  );
});

test('the time for which the machine stands still does not count', () => {
  expect(swapBy('sleep 0.4; kill -STOP $PPID; sleep 3.5; kill -CONT $PPID; sleep 0.5')).toBe('done\n');
});
