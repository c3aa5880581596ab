import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { loadState, saveState } from './state.ts';

const DISK = {
  name: 'vm',
  path: '/srv/vm.img',
  readOnly: false,
  direct: true,
  mappable: true,
  filters: [],
  live: null,
};
const FILTERS = [{ name: 'limit', options: { rate: 1 }, partition: 2 }];
const STATE = { disks: [{ ...DISK, filters: FILTERS }], mapped: [{ name: 'm', filters: FILTERS }] };

describe('the state file', () => {
  let directory: string;
  let file: string;

  beforeEach(() => {
    directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-state-'));
    file = path.join(directory, 'state.json');
  });
  afterEach(() => fs.rmSync(directory, { recursive: true }));

  it('gives back what was saved, and leaves nothing else behind', () => {
    saveState(file, STATE);
    expect(loadState(file)).toEqual(STATE);
    expect(fs.readdirSync(directory)).toEqual(['state.json']);
    expect(fs.statSync(file).mode & 0o777).toBe(0o600);
  });

  it('is empty before the first time', () => {
    expect(loadState(file)).toEqual({ disks: [], mapped: [] });
  });

  it.each([
    ['', /not JSON/],
    ['{"version":1,"disks":[', /not JSON/],
    ['null', /repair it/],
    ['{"version":2,"disks":[]}', /it has version 2/],
    [JSON.stringify({ version: 1, disks: [{ ...DISK, name: '../x' }] }), /name/],
    [JSON.stringify({ version: 1, disks: [{ ...DISK, extra: 1 }] }), /extra/],
  ])('is refused when it is %s', (text, words) => {
    fs.writeFileSync(file, text);
    expect(() => loadState(file)).toThrow(words);
  });

  it('keeps the old content when the new cannot be written', () => {
    saveState(file, STATE);
    fs.mkdirSync(`${file}.partial`);
    expect(() => saveState(file, { disks: [], mapped: [] })).toThrow(/Cannot write the state file/);
    expect(loadState(file)).toEqual(STATE);
  });
});
