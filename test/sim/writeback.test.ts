/** Storage that fails behind the page cache, in the order of events that no seed is sure to draw: whoever is told of it
 *  first, no image of the snapshot shows wrong data afterwards, nor after the daemon. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect, it } from 'vitest';
import { READ, WRITE, runBio } from '../../src/block/bio.ts';
import type { BioSink, Op } from '../../src/block/bio.ts';
import { ERRNO } from '../../src/util/errors.ts';
import { Prng } from '../../src/util/prng.ts';
import { check } from './check.ts';
import { SimClock } from './clock.ts';
import { take } from './takes.ts';
import { drawWeather } from './weather.ts';
import type { Weather } from './weather.ts';
import { World, newMachine } from './world.ts';

const CHUNK = 4096;
/** Draws both disks. */
const SEED = 3;

function quietWeather(): Weather {
  const weather = { ...drawWeather(1), mapInFile: true, persistent: 1, cowTimeoutMs: 10_000 };
  const numbers = ['Error', 'interrupted', 'shortIo', 'stall', 'hoggedArena'];
  for (const name of Object.keys(weather) as Array<keyof Weather>)
    if (numbers.some((each) => name.endsWith(each))) Object.assign(weather, { [name]: 0 });
  // Never drawn: it says that snapshots may be lost.
  return { ...weather, badSectors: false, storagePages: Infinity, originSparePages: Infinity, writebackError: 1e-12 };
}

async function io(world: World, sink: BioSink, op: Op): Promise<number> {
  const { reactor, pool } = world;
  const at = reactor.arena.allocate(CHUNK);
  reactor.arena.bytes.fill(7, at, at + CHUNK);
  const status = await reactor.until(runBio(pool, sink, { op, offset: CHUNK, length: CHUNK, at }));
  reactor.arena.release(at);
  return status;
}

it.each([
  ['a reader', 'is killed'],
  ['a reader', 'ends in order'],
  ['nobody', 'is killed'],
  ['nobody', 'ends in order'],
])('%s learns it of one of two images, and the daemon %s', async (told, end) => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-writeback-'));
  const machine = newMachine(new SimClock(new Prng(1)), quietWeather(), directory);
  const world = await World.start(machine);
  await world.reactor.until(take(world, new Prng(SEED)));
  expect(world.images).toHaveLength(2);
  for (const { disk, model } of world.disks) {
    expect(await io(world, disk, WRITE)).toBe(0);
    model.content.fill(7, CHUNK, 2 * CHUNK);
  }
  const [storage] = [...machine.persistent[0]!.places.values()];
  storage!.doom(CHUNK, storage!.size - CHUNK);
  storage!.failWriteback();
  if (told === 'a reader') expect(await io(world, world.images[0]!.image, READ)).toBe(ERRNO.EIO);
  await world.reactor.settle();
  if (end === 'is killed') await world.die(false);
  else await world.stop();
  const next = await World.start(machine);
  await check(next);
  await next.stop();
  machine.depot.close();
  fs.rmSync(directory, { recursive: true });
});
