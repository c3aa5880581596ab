/** The change map: size rule, marks, numbers and generations, and when stored history is trusted. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { GIB, KIB, MIB, TIB } from '../util/units.ts';
import { CbtMap, trackingShift } from './cbt-map.ts';

const SIZE = 10 * MIB + 512;
let directory = '';
let disk = '';
let file = '';

beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-cbt-'));
  disk = path.join(directory, 'disk');
  file = path.join(directory, 'map');
  fs.writeFileSync(disk, Buffer.alloc(4096));
});
afterEach(() => fs.rmSync(directory, { recursive: true }));

function open(deviceSize = SIZE): CbtMap {
  return CbtMap.open({ path: file, deviceSize, originPath: disk });
}

test.each([
  [1 * GIB, 64 * KIB],
  [128 * GIB, 64 * KIB],
  [128 * GIB + 512, 128 * KIB],
  [16 * TIB, 8 * MIB],
  [4096 * TIB, 64 * MIB],
])('a disk of %d bytes is tracked in blocks of %d', (size, block) => {
  expect(2 ** trackingShift(size)).toBe(block);
});

test('marks every block that a range touches, and only those', () => {
  const cbt = open();
  cbt.mark(65_535, 2, 0);
  cbt.mark(SIZE - 1, 1, 0);
  expect([...cbt.map.entries()].filter(([, number]) => number > 0).map(([block]) => block)).toEqual([0, 1, 160]);
  cbt.close();
});

test('counts periods to 255, then starts a new generation with nothing in it', () => {
  const cbt = open();
  const first = cbt.generationId;
  for (let number = 1; number < 255; number++) {
    expect(cbt.changeNumber).toBe(number);
    cbt.mark(0, 1, 0);
    cbt.advance();
  }
  expect(cbt.generationId).toBe(first);
  cbt.advance();
  expect(cbt.changeNumber).toBe(1);
  expect(cbt.generationId).not.toBe(first);
  expect(cbt.map.every((number) => number === 0)).toBe(true);
  expect(cbt.reason).toMatch(/255/);
  cbt.close();
});

describe('after it was closed', () => {
  test('history goes on', () => {
    const before = open();
    const generation = before.generationId;
    before.advance();
    before.mark(MIB, 1, 0);
    before.close();
    const after = open();
    expect(after.reason).toBe('');
    expect([after.generationId, after.changeNumber, after.map[16]]).toEqual([generation, 2, 2]);
    after.close();
  });

  test.each([
    ['written', () => fs.utimesSync(disk, 1, 1), /written while it was not attached/],
    ['replaced', () => replaceDisk(), /another one/],
    ['given a damaged map', () => fs.writeFileSync(file, 'garbage'), /not readable/],
    ['given a map cut short', () => fs.truncateSync(file, 4100), /not readable/],
    ['without its map', () => fs.rmSync(file), /begins/],
  ])('a disk that was %s gets a new generation', (_what, happen, reason) => {
    const before = open();
    const generation = before.generationId;
    before.mark(0, SIZE, 0);
    before.close();
    happen();
    const after = open();
    expect(after.reason).toMatch(reason);
    expect(after.generationId).not.toBe(generation);
    expect(after.changeNumber).toBe(1);
    expect(after.map.every((number) => number === 0)).toBe(true);
    after.close();
  });

  test('a resized disk gets a new generation', () => {
    open().close();
    const after = open(SIZE * 2);
    expect(after.reason).toMatch(/resized from 10486272 to 20972544/);
    after.close();
  });
});

describe('without being closed (the process was killed)', () => {
  test('history goes on in the same boot', () => {
    const killed = open();
    killed.advance();
    killed.mark(MIB, 1, 0);
    const after = open();
    expect(after.reason).toBe('');
    expect([after.generationId, after.changeNumber, after.map[16]]).toEqual([killed.generationId, 2, 2]);
    after.close();
  });

  test('a machine that stopped loses it', () => {
    open();
    const bytes = fs.readFileSync(file);
    bytes.write('00000000-0000-0000-0000-000000000000', 72);
    fs.writeFileSync(file, bytes);
    const after = open();
    expect(after.reason).toMatch(/machine stopped/);
    after.close();
  });

  test('history goes on after a write that came with the last mark', async () => {
    const killed = open();
    await tick();
    killed.mark(0, 512, 1);
    writeInPlace('ours');
    const after = open();
    expect([after.reason, after.generationId]).toEqual(['', killed.generationId]);
    after.close();
  });

  test('history goes on after marks whose writes did not come any more', async () => {
    const killed = open();
    await tick();
    killed.mark(0, 512, 1);
    writeInPlace('ours');
    // Longer than the file's clock may be behind.
    for (let nowMs = 2; nowMs < 8; nowMs++) {
      await tick();
      killed.mark(0, 512, nowMs);
    }
    const after = open();
    expect([after.reason, after.generationId]).toEqual(['', killed.generationId]);
    after.close();
  });

  test.each<[string, number, () => void]>([
    ['written long after the last mark', -60_000, () => writeInPlace('theirs')],
    ['written with the clock set back', 60_000, () => writeInPlace('theirs')],
    ['restored with its old times', -60_000, () => restoreInPlace('theirs')],
  ])('a disk %s loses it', async (_what, laterMs, happen) => {
    open().mark(0, 512, 1);
    moveTimes([...LAST_MARK, ...MARKS], laterMs);
    await tick();
    happen();
    const after = open();
    expect(after.reason).toMatch(/written while it was not attached/);
    after.close();
  });

  test.each<[string, number]>([
    ['to a mark of long ago', 60_000],
    ['before the last mark, to one that was later', -3000],
  ])('a disk written with the clock set back %s loses it', async (_what, lastMarkMs) => {
    open().mark(0, 512, 1);
    moveTimes(LAST_MARK, lastMarkMs);
    await tick();
    writeInPlace('theirs');
    const after = open();
    expect(after.reason).toMatch(/written while it was not attached/);
    after.close();
  });

  test("a mark without a write does not make the last write look like somebody else's", async () => {
    const killed = open();
    await tick();
    killed.mark(0, 512, 1);
    writeInPlace('ours');
    await tick();
    await tick();
    killed.markOnly(0, SIZE);
    const after = open();
    expect(after.reason).toBe('');
    after.close();
  });
});

test('a disk restored in place with the times it had loses its history', async () => {
  open().close();
  await tick();
  restoreInPlace('theirs');
  const after = open();
  expect(after.reason).toMatch(/written while it was not attached/);
  after.close();
});

test('a generation ends before its marks do: a kill in between must not leave it without them', () => {
  const cbt = open();
  const generation = cbt.generationId;
  cbt.mark(0, SIZE, 0);
  Object.defineProperty(cbt.map, 'fill', {
    value: () => {
      throw new Error('killed');
    },
  });
  expect(() => cbt.renew('a test')).toThrow('killed');
  const after = open();
  expect(after.generationId).not.toBe(generation);
  after.close();
});

test('after a sync that failed no end is clean, nor that of a later process, until the machine is started anew', () => {
  const isClean = (): boolean => fs.readFileSync(file).readUInt32LE(28) !== 0;
  open().noteLost();
  // Killed: its history goes on.
  const next = open();
  expect(next.reason).toBe('');
  next.close();
  expect(isClean()).toBe(false);
  open(2 * SIZE).close();
  expect(isClean()).toBe(false);
  const bytes = fs.readFileSync(file);
  bytes.write('00000000-0000-0000-0000-000000000000', 72);
  fs.writeFileSync(file, bytes);
  open(2 * SIZE).close();
  expect(isClean()).toBe(true);
});

test('a map closed with writes that may be lost is not clean', () => {
  open().close(false);
  expect(fs.readFileSync(file).readUInt32LE(28)).toBe(0);
  open().close();
  expect(fs.readFileSync(file).readUInt32LE(28)).toBe(1);
});

/** Longer than the step of a file system's clock. */
function tick(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 30));
}

const LAST_MARK = [136];
const MARKS = Array.from({ length: 64 }, (_, i) => 160 + 8 * i);

/** As if these marks had been made as much later. */
function moveTimes(places: readonly number[], byMs: number): void {
  const bytes = fs.readFileSync(file);
  for (const at of places) {
    const time = bytes.readDoubleLE(at);
    if (time > 0) bytes.writeDoubleLE(time + byMs, at);
  }
  fs.writeFileSync(file, bytes);
}

function writeInPlace(text: string): void {
  const fd = fs.openSync(disk, 'r+');
  fs.writeSync(fd, text);
  fs.closeSync(fd);
}

/** What cp -p, rsync and tar do. */
function restoreInPlace(text: string): void {
  const { atime, mtime } = fs.statSync(disk);
  writeInPlace(text);
  fs.utimesSync(disk, atime, mtime);
}

function replaceDisk(): void {
  fs.copyFileSync(disk, `${disk}.new`);
  fs.renameSync(`${disk}.new`, disk);
}
