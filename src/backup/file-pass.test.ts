import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ffiAvailable } from '../io/sys.ts';
import { RangeChecksums } from '../util/checksum.ts';
import { Prng } from '../util/prng.ts';
import { KIB, MIB } from '../util/units.ts';
import { passFile } from './file-pass.ts';
import type { FileSums } from './sums.ts';

const RANGE_BYTES = 256 * KIB;
/** Its last range is short, and no whole number of pieces. */
const FILE_BYTES = 2 * MIB + 5 * 512;

const ZEROES_AT = 20 * 64 * KIB;

let directory: string;
let content: Uint8Array;
let file: string;
let sums: FileSums;
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-pass-'));
  content = new Uint8Array(FILE_BYTES);
  new Prng(7).fill(content);
  content.fill(0, ZEROES_AT, ZEROES_AT + 128 * KIB);
  file = path.join(directory, 'point');
  fs.writeFileSync(file, content);
  const whole = new RangeChecksums(RANGE_BYTES);
  whole.update(content);
  sums = { fileBytes: FILE_BYTES, rangeBytes: RANGE_BYTES, checksums: whole.finish() };
});
afterEach(() => fs.rmSync(directory, { recursive: true }));

/** Copies runs of the file, given as [place, offset, length], to a new one. */
async function copy(runs: ReadonlyArray<readonly [number, number, number]>, threads: number, signal?: AbortSignal) {
  const target = path.join(directory, 'target');
  const fd = fs.openSync(target, 'w');
  const told = { bytes: 0, copied: 0 };
  try {
    const findings = await passFile(file, {
      sums,
      copy: { fd, path: target, runs: Float64Array.from(runs.flat()), writesBackAtOnce: ffiAvailable() },
      threads,
      signal,
      onBytes: (bytes, copied) => {
        told.bytes += bytes;
        told.copied += copied;
      },
    });
    return { findings, told, target };
  } finally {
    fs.closeSync(fd);
  }
}

describe.each([1, 2])('with %i threads', (threads) => {
  test('what the disk has goes where it belongs, whatever its place in the file, and zeros are not written', async () => {
    const runs = [
      [512, 3 * MIB, 1000],
      [RANGE_BYTES - 512, 65_536, 3 * RANGE_BYTES],
      [ZEROES_AT, 9 * MIB, 64 * KIB],
      [FILE_BYTES - 700, 0, 700],
    ] as const;
    const { findings, told, target } = await copy(runs, threads);
    expect(findings).toEqual({ wrong: [], unreadable: [] });
    expect(told).toEqual({ bytes: FILE_BYTES, copied: 1700 + 3 * RANGE_BYTES + 64 * KIB });
    const expected = new Uint8Array(3 * MIB + 1000);
    for (const [place, offset, length] of runs.filter((run) => run[0] !== ZEROES_AT))
      expected.set(content.subarray(place, place + length), offset);
    expect(Buffer.compare(fs.readFileSync(target), expected)).toBe(0);
  });

  test('every wrong range is found, and what cannot be read is told apart', async () => {
    const fd = fs.openSync(file, 'r+');
    fs.writeSync(fd, 'x', RANGE_BYTES + 77);
    fs.writeSync(fd, 'x', 5 * RANGE_BYTES - 1);
    fs.ftruncateSync(fd, FILE_BYTES - 512);
    fs.closeSync(fd);
    const { wrong, unreadable } = await passFile(file, { sums, threads });
    expect(wrong.toSorted((a, b) => a - b)).toEqual([1, 4, 8]);
    expect(unreadable).toEqual([8]);
  });

  test('a failed write fails it, and a cancel ends it', async () => {
    const fd = fs.openSync(file, 'r');
    try {
      const runs = Float64Array.of(0, 4096, 65_536);
      const failing = passFile(file, {
        sums,
        copy: { fd, path: 'the target', runs, writesBackAtOnce: false },
        threads,
      });
      await expect(failing).rejects.toThrow('Cannot write 65536 bytes at offset 4096 of "the target": EBADF');
    } finally {
      fs.closeSync(fd);
    }
    await expect(copy([], threads, AbortSignal.abort())).rejects.toMatchObject({ code: 'ECANCELED' });
  });
});
