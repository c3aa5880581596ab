import fs from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Bench } from '../../test/qcow2-images.ts';
import { ERRNO } from '../util/errors.ts';
import { TableCache, TableFile } from './table-cache.ts';

const SLICE = 4096;
const SLICES = 40;

let bench: Bench;
let fd: number;
beforeAll(async () => {
  bench = await Bench.open();
  const words = new Uint32Array((SLICES * SLICE) / 4).map((_, i) => Math.floor((i * 4) / SLICE));
  fs.writeFileSync(bench.path('tables'), words);
  fd = fs.openSync(bench.path('tables'), 'r');
});
afterAll(async () => {
  fs.closeSync(fd);
  await bench.close();
});

async function open(slices: number): Promise<{ cache: TableCache; tables: TableFile }> {
  const cache = new TableCache(bench.reactor, slices * SLICE);
  await cache.open();
  return { cache, tables: new TableFile(cache, { fd, path: 'tables' }, 65_536) };
}

const found = (tables: TableFile): number[] =>
  Array.from({ length: SLICES }, (_, i) => i).filter((i) => tables.find(i * SLICE) !== null);

test('keeps no more slices than its limit, whatever is loaded at once', async () => {
  const { cache, tables } = await open(3);
  expect(tables.find(0)).toBeNull();
  await Promise.all(Array.from({ length: SLICES }, (_, i) => tables.load(i * SLICE)));
  const kept = found(tables);
  expect(kept).toHaveLength(3);
  for (const i of kept) expect(tables.find(i * SLICE)!.view.getUint32(8, true)).toBe(i);
  cache.close();
});

test('gives up first what was not used since', async () => {
  const { cache, tables } = await open(3);
  for (const i of [0, 1, 2, 3]) await tables.load(i * SLICE);
  // Loading 3 cleared every mark. Now 1 and 3 are used, 2 is not.
  tables.find(SLICE);
  tables.find(3 * SLICE);
  await tables.load(4 * SLICE);
  expect(found(tables)).toEqual([1, 3, 4]);
  cache.close();
});

test('loads of one slice share one read; a slice at the end of the file is filled up with zeroes', async () => {
  const { cache, tables } = await open(8);
  const [first, second] = [tables.load(0), tables.load(0)];
  expect(second).toBe(first);
  expect(await first).toBe(0);
  expect(await tables.load(SLICES * SLICE)).toBe(0);
  expect(tables.find(SLICES * SLICE)!.view.getUint32(0)).toBe(0);
  cache.close();
});

test('a file that cannot be read is EIO, and can be tried again', async () => {
  const cache = new TableCache(bench.reactor, SLICE);
  await cache.open();
  const tables = new TableFile(cache, { fd: 1_000_000, path: 'nowhere' }, 65_536);
  expect(await tables.load(0)).toBe(ERRNO.EIO);
  expect(await tables.load(0)).toBe(ERRNO.EIO);
  expect(tables.find(0)).toBeNull();
  cache.close();
});
