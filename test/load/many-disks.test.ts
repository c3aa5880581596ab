/** One daemon with 64 disks and 200 snapshots at once: each image as it was at its take, and nothing left of them. Prints what it
 *  measures, for docs/reliability.md. */

import fs from 'node:fs';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { Embedded } from '../../src/index.ts';
import type { Bytes } from '../../src/index.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { DaemonWorld } from '../daemon/world.ts';
import { residentBytes } from './resident.ts';

const DISKS = 64;
const SNAPSHOTS = 200;
/** Disks of each but the last snapshot, which has all. */
const EACH = 4;
const CHECKED_STEP = 20;
const BLOCK = 4 * KIB;

let world: DaemonWorld;
let embedded: Embedded;
beforeEach(async () => {
  world = new DaemonWorld();
  embedded = await Embedded.open({ driver: 'portable' });
});
afterEach(async () => {
  await embedded.close();
  await world.close();
});

function descriptors(): number {
  return fs.readdirSync(`/proc/${world.daemon!.child.pid!}/fd`).length;
}

async function isAll(bytes: Bytes, value: number): Promise<boolean> {
  return (await bytes.read(0, BLOCK)).every((byte) => byte === value);
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
}

it(`${DISKS} disks and ${SNAPSHOTS} snapshots at once`, async () => {
  await world.start('--storage-portion', '1M');
  const names = Array.from({ length: DISKS }, (_, i) => `d${i}`);
  const disks: Bytes[] = [];
  for (const name of names) {
    const { uri } = await world.client.attach({ path: world.image(`${name}.img`, 4 * MIB), name });
    disks.push(await embedded.openExport(uri));
  }
  const pid = world.daemon!.child.pid!;
  const before = { descriptors: descriptors(), resident: residentBytes(pid) };

  const taken: Array<{ id: string; of: readonly number[]; uris: Map<string, string> }> = [];
  const tookMs: number[] = [];
  for (let i = 0; i < SNAPSHOTS; i++) {
    const count = i === SNAPSHOTS - 1 ? DISKS : EACH;
    const of = Array.from({ length: count }, (_, k) => (i * EACH + k) % DISKS);
    for (const disk of of) await disks[disk]!.write(0, Buffer.alloc(BLOCK, i + 1));
    const began = performance.now();
    const { id, images } = await world.client.createSnapshot({ disks: of.map((disk) => names[disk]!) });
    tookMs.push(performance.now() - began);
    taken.push({ id, of, uris: new Map(images.map(({ disk, uri }) => [disk, uri])) });
  }
  for (const disk of disks) await disk.write(0, Buffer.alloc(BLOCK, 255));
  const most = { descriptors: descriptors(), resident: residentBytes(pid) };
  expect(await world.client.snapshots()).toHaveLength(SNAPSHOTS);

  for (let i = SNAPSHOTS - 1; i >= 0; i -= CHECKED_STEP) {
    const { of, uris } = taken[i]!;
    for (const disk of of) {
      const image = await embedded.openExport(uris.get(names[disk]!)!);
      expect([i, disk, await isAll(image, i + 1)]).toEqual([i, disk, true]);
      await image.close();
    }
  }
  for (const { id } of taken) await world.client.destroySnapshot(id);
  for (const disk of disks) expect(await isAll(disk, 255)).toBe(true);
  await expect.poll(descriptors).toBeLessThanOrEqual(before.descriptors);

  const last = tookMs.at(-1)!;
  const times = `a take of ${EACH} disks ${median(tookMs).toFixed(0)} ms (median), of ${DISKS} ${last.toFixed(0)} ms`;
  const mib = (bytes: number): string => (bytes / MIB).toFixed(0);
  const sizes = `resident ${mib(before.resident)} MiB before, ${mib(most.resident)} MiB with them`;
  console.log(`${times}; ${sizes}; descriptors ${before.descriptors} and ${most.descriptors}`);
});
