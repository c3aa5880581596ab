/** Persistent snapshots at random: over many restarts, with holes, zeros, discards, newer and older snapshots, every
 *  byte compared; and journals with noise in them. A failure names its seed. */

import fs from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { DISCARD, WRITE_ZEROES, runBio } from '../src/block/bio.ts';
import type { Snapshot } from '../src/blksnap/snapshot.ts';
import { MIB } from '../src/util/units.ts';
import { Prng } from '../src/util/prng.ts';
import { ID, PersistentCore, SIZE } from './persistent-core.ts';

const OTHER = '0c1a6f1e-9a53-4b0e-8a37-1f2f9a6f2f11';
const MEMORY = { path: ':memory:', limitBytes: 64 * MIB };

let world: PersistentCore;

beforeEach(async () => {
  world = await PersistentCore.open();
});
afterEach(() => world.close());

/** Noise, holes and written zeros. */
function sparseDisk(file: string): void {
  const fd = fs.openSync(file, 'w');
  fs.ftruncateSync(fd, SIZE);
  const random = new Prng(7);
  const noise = Uint8Array.from({ length: 16_384 }, () => random.below(256));
  const zeros = new Uint8Array(16_384);
  for (let at = 0; at < SIZE; at += 65_536) fs.writeSync(fd, at % 262_144 === 0 ? zeros : noise, 0, 16_384, at);
  fs.closeSync(fd);
}

test.each([1, 2, 3])('images are the same after every one of many restarts (seed %i)', async (seed) => {
  const random = new Prng(seed);
  sparseDisk(world.core.path('a'));
  const was = new Map<string, Buffer>();
  for (let round = 0; round < 8; round++) {
    const { core } = world;
    const { disk, tracker, file } = await core.disk('a', SIZE);
    const held: Array<{ snapshot: Snapshot; content: Buffer }> = [];
    for (const [id, content] of was) held.push({ snapshot: await world.restore([tracker], id), content });
    for (const { snapshot, content } of held)
      expect((await core.read(snapshot.images[0]!, 0, SIZE)).data.equals(content), `restart ${round}`).toBe(true);
    if (round % 3 === 1)
      held.push({ snapshot: await core.set.create([tracker], MEMORY), content: fs.readFileSync(file) });
    const id = round === 0 ? ID : round === 4 ? OTHER : null;
    if (id !== null) {
      was.set(id, fs.readFileSync(file));
      held.push({ snapshot: await world.take([tracker], { id }), content: was.get(id)! });
    }
    for (let i = 0; i < 40; i++) {
      const offset = random.below(SIZE / 512) * 512;
      const length = Math.min(SIZE - offset, (1 + random.below(random.chance(0.1) ? 1000 : 40)) * 512);
      const op = random.chance(0.3) ? DISCARD : random.chance(0.3) ? WRITE_ZEROES : null;
      if (op === null) await core.write(disk, offset, length, random.below(256));
      else await runBio(core.pool, disk, { op, offset, length });
      if (i % 10 > 0) continue;
      for (const { snapshot, content } of held)
        expect((await core.read(snapshot.images[0]!, 0, SIZE)).data.equals(content), `round ${round}`).toBe(true);
    }
    await world.restart();
  }
});

test.each([1, 2, 3, 4])('noise in a journal is refused, or harmless (seed %i)', async (seed) => {
  const old = await world.laidDown();
  const random = new Prng(seed);
  const good = fs.readFileSync(world.journal());
  let refused = 0;
  for (let i = 0; i < 10; i++) {
    const bad = Buffer.from(good);
    for (let changes = 1 + random.below(4); changes > 0; changes--) bad[random.below(bad.length)] = random.below(256);
    fs.writeFileSync(world.journal(), random.chance(0.2) ? bad.subarray(0, random.below(bad.length)) : bad);
    const { tracker } = await world.core.disk('a', SIZE);
    const restored = await world.restore([tracker]).catch((error: unknown) => error as Error);
    if (restored instanceof Error) refused++;
    else expect((await world.core.read(restored.images[0]!, 0, SIZE)).data.equals(old)).toBe(true);
    await world.restart();
  }
  expect(refused).toBeGreaterThan(0);
});
