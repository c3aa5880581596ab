import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { replaceFile } from './durable.ts';

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
