/** A thousand snapshots of disks that are written to all the time: each shows one instant, and nothing is left. */

import fs from 'node:fs';
import { describe, expect, test } from 'vitest';
import type { DriverName } from '../src/io/open.ts';
import type { Disk } from '../src/block/disk.ts';
import { KIB, MIB } from '../src/util/units.ts';
import { Core } from './core.ts';

const TAKES = 1000;
const SIZE = 256 * KIB;
const STORAGE = { path: ':memory:', limitBytes: 4 * MIB };

/** Writes growing numbers to the same place of one disk, then of the other, for as long as it is told to. */
async function count(core: Core, disks: readonly Disk[], running: () => boolean): Promise<number> {
  let number = 0;
  while (running()) {
    number++;
    for (const disk of disks) expect(await core.writeNumber(disk, 0, number)).toBe(0);
  }
  return number;
}

describe.each<DriverName>(['uring', 'portable'])('%s driver', (driver) => {
  test(`${TAKES} takes under load`, async () => {
    const core = await Core.open({ driver });
    const a = await core.disk('a', SIZE);
    const b = await core.disk('b', SIZE);
    for (const { disk } of [a, b]) await core.writeNumber(disk, 0, 0);
    const descriptors = fs.readdirSync('/proc/self/fd').length;
    let taken = 0;
    const load = count(core, [a.disk, b.disk], () => taken < TAKES);
    for (; taken < TAKES; taken++) {
      const snapshot = await core.set.create([a.tracker, b.tracker], STORAGE);
      if (taken % 20 === 0) {
        const [first, second] = await Promise.all(snapshot.images.map((image) => core.readNumber(image, 0)));
        // The numbers are written to `a` first: one instant has them equal, or `a` one ahead.
        expect([0, 1]).toContain(first! - second!);
        await new Promise((resolve) => setTimeout(resolve, 2));
        expect(await core.readNumber(snapshot.images[0]!, 0)).toBe(first);
        expect(await core.readNumber(snapshot.images[1]!, 0)).toBe(second);
      }
      await core.set.destroy(snapshot.id);
    }
    expect(await load).toBeGreaterThan(TAKES / 10);
    expect(fs.readdirSync('/proc/self/fd').length).toBe(descriptors);
    expect(core.events).toEqual([]);
    await core.close();
  });
});
