/** A take copies most of a change map before it freezes the disk; the frozen map is nevertheless that of the take. */

import fs from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Core } from '../../test/core.ts';
import type { Disk } from '../block/disk.ts';
import { MIB } from '../util/units.ts';
import type { Take } from './take.ts';
import type { Tracker } from './tracker.ts';

const BLOCK = 64 * 1024;
const SIZE = 512 * MIB; // of two pages of the map

let core: Core;
beforeEach(async () => void (core = await Core.open()));
afterEach(() => core.close());

async function setUp(): Promise<{
  disk: Disk;
  tracker: Tracker;
  file: string;
  write(block: number): Promise<void>;
  plan(): Promise<Take>;
  finish(take: Take): Promise<Uint8Array>;
}> {
  fs.writeFileSync(core.path('a'), '');
  fs.truncateSync(core.path('a'), SIZE);
  const { disk, tracker, file } = await core.disk('a', SIZE);
  return {
    disk,
    tracker,
    file,
    write: async (block) => expect(await core.write(disk, block * BLOCK, 512, 1)).toBe(0),
    plan: () => core.set.plan([tracker], { path: ':memory:', limitBytes: Infinity }, { id: crypto.randomUUID() }),
    finish: async (take) => {
      await take.freeze();
      take.switch();
      take.thaw();
      const snapshot = core.set.finish(take, { createdAt: 0, heldMs: 0 });
      const map = snapshot.images[0]!.area.frozenMap.slice();
      await core.set.destroy(snapshot.id);
      return map;
    },
  };
}

const marked = (map: Uint8Array): Array<[number, number]> => [...map.entries()].filter(([, number]) => number > 0);

test('what is written between plan and freeze is in the frozen map', async () => {
  const { write, plan, finish } = await setUp();
  await write(1);
  const take = await plan();
  await write(1);
  await write(5000);
  await write(8191);
  expect(marked(await finish(take))).toEqual([1, 5000, 8191].map((block) => [block, 1]));
});

test('what is written after the take is not, of two takes at a time each has its own', async () => {
  const { write, plan, finish } = await setUp();
  const [first, second] = [await plan(), await plan()];
  await write(1);
  expect(marked(await finish(first))).toEqual([[1, 1]]);
  await write(1);
  await write(4100);
  expect(marked(await finish(second))).toEqual([
    [1, 2],
    [4100, 2],
  ]);
});

test('a disk that got another size and its old one again between plan and freeze', async () => {
  const { disk, file, write, plan, finish } = await setUp();
  await write(1);
  const take = await plan();
  for (const size of [SIZE / 2, SIZE]) {
    fs.truncateSync(file, size);
    expect(await disk.resize()).toBe(size);
  }
  await write(2);
  expect(marked(await finish(take))).toEqual([[2, 1]]);
});

test('a take that is given up takes nothing from another', async () => {
  const { write, plan, finish } = await setUp();
  const [given, other] = [await plan(), await plan()];
  await core.set.abandon(given);
  await write(2);
  expect(marked(await finish(other))).toEqual([[2, 1]]);
});

test('history that is forgotten between plan and freeze is not in the frozen map', async () => {
  const { tracker, write, plan, finish } = await setUp();
  await write(1);
  const take = await plan();
  tracker.cbt.renew('a test');
  await write(5000);
  expect(marked(await finish(take))).toEqual([[5000, 1]]);
});

test('a take of two disks of which one goes meanwhile leaves the other as it was', async () => {
  const { disk, tracker } = await setUp();
  const other = await core.disk('b', MIB);
  const id = crypto.randomUUID();
  const take = await core.set.plan([other.tracker, tracker], { path: ':memory:', limitBytes: Infinity }, { id });
  await take.freeze();
  await other.disk.detachFilter(other.tracker);
  expect(() => take.switch()).toThrow(/not attached/);
  await core.set.abandon(take);
  expect(await core.write(disk, 0, 512, 1)).toBe(0);
  expect(await core.write(other.disk, 0, 512, 1)).toBe(0);
  const next = await core.set.create([tracker], { path: ':memory:', limitBytes: Infinity });
  expect(marked(next.images[0]!.area.frozenMap)).toEqual([[0, 1]]);
});
