/** Storage in memory that old data is read straight into. */

import fs from 'node:fs';
import { describe, expect, test } from 'vitest';
import type { DriverName } from '../io/open.ts';
import { SLAB_BYTES } from '../io/slab-pool.ts';
import { ERRNO } from '../util/errors.ts';
import { KIB, MIB } from '../util/units.ts';
import { Core } from '../../test/core.ts';
import type { Snapshot } from './snapshot.ts';

/** Room for two, wherever in memory the first begins. */
const TWO_SLABS = 3 * SLAB_BYTES - 4 * KIB;
const memory = (limitBytes: number) => ({ path: ':memory:', limitBytes });
const inFile = ({ storage }: Snapshot): number => fs.fstatSync(storage.pieces[0]!.fd).blocks * 512;
const old = (size: number): Buffer => Buffer.alloc(size, 'a ');

describe.each<DriverName>(['uring', 'portable'])('%s', (driver) => {
  const open = (slabBytes = 64 * MIB) => Core.open({ driver, slabBytes });

  test('copies are in slabs and nowhere else, and images read them there', async () => {
    const core = await open();
    const { disk, tracker } = await core.disk('a', 8 * MIB);
    const snapshot = await core.set.create([tracker], memory(Infinity));
    const image = snapshot.images[0]!;
    for (const offset of [0, 4 * KIB, 3 * MIB + 512]) await core.write(disk, offset, MIB, 1);
    expect(inFile(snapshot)).toBe(0);
    expect(snapshot.storage.usedBytes).toBe(2 * MIB + 8 * KIB);
    expect(core.reactor.slabs.lentBytes).toBe(2 * SLAB_BYTES);
    expect((await core.read(image, 0, 8 * MIB)).data.equals(old(8 * MIB))).toBe(true);
    expect((await core.read(image, 3 * MIB + 512, 3 * KIB)).data.equals(old(3 * KIB))).toBe(true);
    // What is written to the image goes to the file beside it.
    await core.write(image, 512, 8 * KIB, 2);
    expect(inFile(snapshot)).toBe(12 * KIB);
    const content = old(16 * KIB).fill(2, 512, 512 + 8 * KIB);
    expect((await core.read(image, 0, 16 * KIB)).data.equals(content)).toBe(true);
    await core.set.destroy(snapshot.id);
    expect(core.reactor.slabs.lentBytes).toBe(0);
    await core.close();
  });

  test('copies go on to the file where there are no more slabs', async () => {
    const core = await open(TWO_SLABS);
    const { disk, tracker } = await core.disk('a', 16 * MIB);
    const older = await core.set.create([tracker], memory(Infinity));
    for (let offset = 0; offset < 8 * MIB; offset += 100 * KIB) await core.write(disk, offset, 100 * KIB, 1);
    const { lentBytes } = core.reactor.slabs;
    expect(lentBytes).toBe(2 * SLAB_BYTES);
    await expect.poll(() => inFile(older)).toBe(older.storage.usedBytes - lentBytes);
    const newer = await core.set.create([tracker], memory(Infinity));
    await core.write(disk, 0, 12 * MIB, 2);
    const whole = old(16 * MIB);
    expect((await core.read(older.images[0]!, 0, 16 * MIB)).data.equals(whole)).toBe(true);
    whole.fill(1, 0, 8 * MIB + 20 * KIB);
    expect((await core.read(newer.images[0]!, 0, 8 * MIB)).data.equals(whole.subarray(0, 8 * MIB))).toBe(true);
    // The next snapshot finds what this one gave back.
    await core.set.destroy(older.id);
    expect(core.reactor.slabs.lentBytes).toBe(0);
    await core.set.create([tracker], memory(Infinity));
    await core.write(disk, 0, MIB, 3);
    expect(core.reactor.slabs.lentBytes).toBe(SLAB_BYTES);
    await core.close();
    expect(core.reactor.slabs.lentBytes).toBe(0);
  });

  test('the limit counts what is kept, and no zeros', async () => {
    const core = await open();
    const file = core.path('a');
    fs.writeFileSync(file, Buffer.concat([Buffer.alloc(MIB), old(MIB)]));
    const { disk, tracker } = await core.disk('a', 2 * MIB);
    const snapshot = await core.set.create([tracker], memory(256 * KIB));
    const image = snapshot.images[0]!;
    await core.write(disk, 0, MIB, 1);
    expect([snapshot.storage.usedBytes, core.reactor.slabs.lentBytes]).toEqual([0, SLAB_BYTES]);
    await core.write(disk, MIB, 256 * KIB, 1);
    expect([snapshot.storage.usedBytes, image.corrupted]).toEqual([256 * KIB, 0]);
    expect(
      (await core.read(image, 0, 2 * MIB)).data.equals(fs.readFileSync(file).fill(0, 0, MIB).fill('a ', MIB)),
    ).toBe(true);
    await core.write(disk, MIB + 256 * KIB, 4 * KIB, 1);
    expect(image.corrupted).toBe(ERRNO.ENOSPC);
    expect(core.events.map(({ code }) => code)).toEqual(['lowSpace', 'noSpace', 'corrupted']);
    expect(core.reactor.slabs.lentBytes).toBeLessThanOrEqual(SLAB_BYTES);
    expect((await core.read(disk, MIB, 256 * KIB)).data.equals(Buffer.alloc(256 * KIB, 1))).toBe(true);
    await core.set.destroy(snapshot.id);
    expect(core.reactor.slabs.lentBytes).toBe(0);
    await core.close();
  });

  test('what the limit leaves no room for is stored in the next place', async () => {
    const core = await open();
    const { disk, tracker } = await core.disk('a', 2 * MIB);
    const snapshot = await core.set.create([tracker], memory(256 * KIB));
    await core.set.append(snapshot.id, { path: core.directory, limitBytes: 4 * MIB });
    for (let offset = 0; offset < 2 * MIB; offset += 52 * KIB)
      await core.write(disk, offset, Math.min(52 * KIB, 2 * MIB - offset), 1);
    expect((await core.read(snapshot.images[0]!, 0, 2 * MIB)).data.equals(old(2 * MIB))).toBe(true);
    expect(snapshot.storage.usedBytes).toBe(2 * MIB);
    expect(snapshot.storage.pieces.map(({ used }) => used)).toEqual([52, 460]);
    await core.close();
  });

  test('memory goes back where nobody will read it again', async () => {
    const core = await open();
    const { disk, tracker } = await core.disk('a', 16 * MIB);
    const snapshot = await core.set.create([tracker], memory(8 * MIB));
    const image = snapshot.images[0]!;
    for (let offset = 0; offset < 16 * MIB; offset += 4 * MIB) {
      await core.write(disk, offset, 4 * MIB, 1);
      expect(core.reactor.slabs.lentBytes).toBe(2 * SLAB_BYTES);
      image.release(offset, 3 * MIB);
      expect(snapshot.storage.usedBytes).toBe(MIB);
      expect((await core.read(image, offset + 3 * MIB, MIB)).data.equals(old(MIB))).toBe(true);
      image.release(offset + 3 * MIB, MIB);
      expect([snapshot.storage.usedBytes, core.reactor.slabs.lentBytes]).toEqual([0, 0]);
    }
    expect(image.corrupted).toBe(0);
    await core.close();
  });

  test('an origin that cannot be read costs the image, and no memory', async () => {
    const core = await open();
    const { disk, tracker, file } = await core.disk('a', MIB);
    const snapshot = await core.set.create([tracker], memory(Infinity));
    fs.truncateSync(file, 0);
    await core.write(disk, 0, 64 * KIB, 1);
    expect(snapshot.images[0]!.corrupted).toBe(ERRNO.EIO);
    await core.set.destroy(snapshot.id);
    expect(core.reactor.slabs.lentBytes).toBe(0);
    await core.close();
  });
});
