import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { readText } from './read-text.ts';

let directory: string;
beforeAll(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-text-'));
});
afterAll(() => fs.rmSync(directory, { recursive: true }));

test('text is read up to the limit, and refused beyond it', () => {
  const file = path.join(directory, 'text');
  fs.writeFileSync(file, '\u00e4bc');
  expect(readText(file, 4)).toBe('\u00e4bc');
  expect(() => readText(file, 3)).toThrow(/has 4 bytes, want at most 3/);
  expect(() => readText(path.join(directory, 'none'), 3)).toThrow(/ENOENT/);
});

test('what is no file is refused, and not waited for', () => {
  const pipe = path.join(directory, 'pipe');
  execFileSync('mkfifo', [pipe]);
  for (const place of [pipe, '/dev/zero']) expect(() => readText(place, 100)).toThrow(/no regular file/);
});
