/** A take copies most of a change map before it freezes the disk; the frozen map is nevertheless that of the take. */

import fs from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Core } from '../../test/core.ts';
import type { Disk } from '../block/disk.ts';
import { MIB } from '../util/units.ts';
import type { Take } from './take.ts';

const BLOCK = 64 * 1024;
const SIZE = 512 * MIB; // of two pages of the map

let core: Core;
beforeEach(async () => void (core = await Core.open()));
afterEach(() => core.close());

async function setUp(): Promise<{
  disk: Disk;
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

test('a take that was given up notes nothing more', async () => {
  const { write, plan, finish } = await setUp();
  const given = await plan();
  await core.set.abandon(given);
  await write(2);
  expect(marked(await finish(await plan()))).toEqual([[2, 1]]);
});
