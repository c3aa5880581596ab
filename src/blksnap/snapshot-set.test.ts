/** Snapshots in trouble: full storage, slow copies, bad requests. The origin always goes on. */

import fs from 'node:fs';
import { describe, expect, test, vi } from 'vitest';
import { BlockFilter } from '../block/filter.ts';
import { READ, WRITE } from '../block/bio.ts';
import type { Bio } from '../block/bio.ts';
import { ERRNO } from '../util/errors.ts';
import type { BlksnapError } from '../util/errors.ts';
import { KIB, MIB } from '../util/units.ts';
import { Core } from '../../test/core.ts';

const MEMORY = { path: ':memory:', limitBytes: 64 * MIB };

describe('a take', () => {
  test('freezes several disks, and keeps them as they were', async () => {
    const core = await Core.open();
    const a = await core.disk('a', MIB);
    const b = await core.disk('b', MIB);
    const began = performance.now();
    const snapshot = await core.set.create([a.tracker, b.tracker], MEMORY);
    expect(snapshot.heldMs).toBeLessThanOrEqual(performance.now() - began);
    expect(await core.write(a.disk, 0, 64 * KIB, 1)).toBe(0);
    expect(await core.write(b.disk, 4096, 4096, 2)).toBe(0);
    expect((await core.read(snapshot.images[0]!, 0, MIB)).data.equals(Buffer.alloc(MIB, 'a '))).toBe(true);
    expect((await core.read(snapshot.images[1]!, 0, MIB)).data.equals(Buffer.alloc(MIB, 'b '))).toBe(true);
    expect(a.tracker.cow.counters.copiedChunks).toBe(16);
    await core.close();
  });

  test.each([
    ['of no disk', 'EINVAL', /of no disk/],
    ['of a disk twice', 'EINVAL', /"a" twice/],
  ])('%s is refused', async (what, code, message) => {
    const core = await Core.open();
    const { tracker } = await core.disk('a', MIB);
    const trackers = what === 'of no disk' ? [] : [tracker, tracker];
    await expect(core.set.create(trackers, MEMORY)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
    await core.close();
  });

  test.each([
    ['that is missing', 'missing/file', 'ENOENT'],
    ['with content', 'full', 'EEXIST'],
    ['that is the origin', 'a', 'EEXIST'],
  ])('with storage %s is refused and leaves the disk as it was', async (_what, name, code) => {
    const core = await Core.open();
    const { disk, tracker } = await core.disk('a', MIB);
    fs.writeFileSync(core.path('full'), 'content');
    await expect(core.set.create([tracker], { path: core.path(name), limitBytes: MIB })).rejects.toMatchObject({
      code,
    });
    expect(core.set.list()).toEqual([]);
    expect(disk.frozen).toBe(false);
    expect(tracker.cbt.changeNumber).toBe(1);
    expect(await core.write(disk, 0, 4096, 1)).toBe(0);
    await core.close();
  });

  test('with a limit below one chunk is refused', async () => {
    const core = await Core.open();
    const { tracker } = await core.disk('a', MIB);
    await expect(core.set.create([tracker], { path: ':memory:', limitBytes: 100 })).rejects.toMatchObject({
      code: 'EINVAL',
    });
    await core.close();
  });
});

test('a named storage file is removed with its snapshot', async () => {
  const core = await Core.open();
  const { disk, tracker } = await core.disk('a', MIB);
  const storage = core.path('storage');
  const snapshot = await core.set.create([tracker], { path: storage, limitBytes: 8 * MIB });
  await core.write(disk, 0, MIB, 1);
  expect(fs.statSync(storage).size).toBeGreaterThanOrEqual(MIB);
  await core.set.destroy(snapshot.id);
  expect(fs.existsSync(storage)).toBe(false);
  await core.close();
});

test('zero chunks take no space', async () => {
  const core = await Core.open();
  fs.writeFileSync(core.path('a'), Buffer.alloc(MIB));
  const { disk, tracker } = await core.disk('a', MIB);
  const snapshot = await core.set.create([tracker], MEMORY);
  await core.write(disk, 0, MIB, 1);
  expect(snapshot.storage.usedBytes).toBe(0);
  expect((await core.read(snapshot.images[0]!, 0, MIB)).data.equals(Buffer.alloc(MIB))).toBe(true);
  await core.close();
});

describe('a full storage', () => {
  test('costs the image of the disk that filled it; the origin and later snapshots go on', async () => {
    const core = await Core.open();
    const { disk, tracker } = await core.disk('a', MIB);
    const snapshot = await core.set.create([tracker], { path: ':memory:', limitBytes: 256 * KIB });
    for (let offset = 0; offset < MIB; offset += 64 * KIB) expect(await core.write(disk, offset, 64 * KIB, 7)).toBe(0);
    expect((await core.read(disk, 0, MIB)).data.equals(Buffer.alloc(MIB, 7))).toBe(true);
    expect(snapshot.images[0]!.corrupted).toBe(ERRNO.ENOSPC);
    expect((await core.read(snapshot.images[0]!, 0, 4096)).status).toBe(ERRNO.EIO);
    const full = { usedBytes: 256 * KIB, limitBytes: 256 * KIB };
    expect(core.events).toMatchObject([
      { code: 'lowSpace', disk: null, error: null, requestedBytes: snapshot.storage.portionBytes, ...full },
      { code: 'noSpace', disk: 'a', error: 'ENOSPC', requestedBytes: 64 * KIB, ...full },
      { code: 'corrupted', disk: 'a', error: 'ENOSPC', requestedBytes: null, snapshotId: snapshot.id },
    ]);
    expect(snapshot.storage.portionBytes).toBe(64 * KIB);

    const next = await core.set.create([tracker], MEMORY);
    await core.write(disk, 0, MIB, 8);
    expect((await core.read(next.images[0]!, 0, MIB)).data.equals(Buffer.alloc(MIB, 7))).toBe(true);
    await core.close();
  });

  test('tells of low space first, also where one copy asks for more than there ever was', async () => {
    const core = await Core.open();
    const { disk, tracker } = await core.disk('a', MIB);
    await core.set.create([tracker], { path: ':memory:', limitBytes: 256 * KIB });
    expect(await core.write(disk, 0, 512 * KIB, 7)).toBe(0);
    expect(core.events.map(({ code }) => code)).toEqual(['lowSpace', 'noSpace', 'corrupted']);
    await core.close();
  });

  test('leaves the images of other disks and of older snapshots intact', async () => {
    const core = await Core.open();
    const a = await core.disk('a', MIB);
    const b = await core.disk('b', MIB);
    const older = await core.set.create([a.tracker], MEMORY);
    await core.write(a.disk, 0, 128 * KIB, 1);
    const newer = await core.set.create([a.tracker, b.tracker], { path: ':memory:', limitBytes: 256 * KIB });
    await core.write(b.disk, 0, 64 * KIB, 2);
    for (let offset = 0; offset < MIB; offset += 64 * KIB) await core.write(a.disk, offset, 64 * KIB, 3);
    expect(newer.image('a')!.corrupted).toBe(ERRNO.ENOSPC);
    expect((await core.read(newer.image('b')!, 0, MIB)).data.equals(Buffer.alloc(MIB, 'b '))).toBe(true);
    expect((await core.read(older.image('a')!, 0, MIB)).data.equals(Buffer.alloc(MIB, 'a '))).toBe(true);
    await core.close();
  });

  test('ends a write to an image with ENOSPC', async () => {
    const core = await Core.open();
    const { tracker } = await core.disk('a', MIB);
    const snapshot = await core.set.create([tracker], { path: ':memory:', limitBytes: 64 * KIB });
    expect(await core.write(snapshot.images[0]!, 0, 128 * KIB, 1)).toBe(ERRNO.ENOSPC);
    expect((await core.read(snapshot.images[0]!, 0, MIB)).data.equals(Buffer.alloc(MIB, 'a '))).toBe(true);
    await core.close();
  });
});

/** Holds the reads that copy-on-write makes until it is told to let them go. */
class StuckReads extends BlockFilter {
  readonly name = 'stuck';
  readonly altitude = 1;
  readonly held: Bio[] = [];
  stuck = true;

  submit(bio: Bio): void {
    if (this.stuck && bio.op === READ) this.held.push(bio);
    else this.below.submit(bio);
  }

  letGo(): void {
    this.stuck = false;
    for (const bio of this.held.splice(0)) this.below.submit(bio);
  }

  override async attach(): Promise<void> {}
  override async detach(): Promise<void> {}
  override async ctl(): Promise<unknown> {
    return null;
  }
}

test('writes that wait too long for copy memory break the snapshot and go on', async () => {
  const core = await Core.open({ copyMemoryBytes: 8 * KIB });
  const { disk, tracker } = await core.disk('a', MIB, { cowTimeoutMs: 50 });
  const stuck = new StuckReads();
  await disk.attachFilter(stuck);
  const snapshot = await core.set.create([tracker], MEMORY);
  const first = core.write(disk, 0, 8 * KIB, 1);
  expect(await core.write(disk, 64 * KIB, 8 * KIB, 2)).toBe(0);
  expect(snapshot.images[0]!.corrupted).toBe(ERRNO.ETIMEDOUT);
  expect(tracker.cow.counters.memoryWaits).toBe(1);
  stuck.letGo();
  expect(await first).toBe(0);
  expect((await core.read(disk, 64 * KIB, 8 * KIB)).data.equals(Buffer.alloc(8 * KIB, 2))).toBe(true);
  await core.close();
});

test('a disk cannot be detached while a snapshot of it is held', async () => {
  const core = await Core.open();
  const { disk, tracker } = await core.disk('a', MIB);
  const snapshot = await core.set.create([tracker], MEMORY);
  await expect(disk.detachFilter(tracker)).rejects.toMatchObject({
    code: 'EBUSY',
    message: expect.stringContaining(snapshot.id),
  });
  expect(await core.write(disk, 0, 4096, 1)).toBe(0);
  await core.close();
});

test('a write that cannot be marked does not reach the disk: nothing passes without its mark and its copy', async () => {
  const core = await Core.open();
  const { disk, tracker, file } = await core.disk('a', MIB);
  const snapshot = await core.set.create([tracker], MEMORY);
  const failing = vi.spyOn(tracker.cbt, 'mark').mockImplementation(() => {
    throw new Error('no mark');
  });
  // Straight to the filter, past the disk that would wait for the write to end.
  const bio = core.pool.get(WRITE, 0, 4096, 0, 0, { bioEnded: () => {} });
  expect(() => tracker.submit(bio)).toThrow('no mark');
  core.pool.put(bio);
  failing.mockRestore();
  expect(await core.write(disk, 8192, 4096, 1)).toBe(0);
  expect(fs.readFileSync(file).subarray(0, 8192).equals(Buffer.alloc(8192, 'a '))).toBe(true);
  expect((await core.read(snapshot.images[0]!, 0, MIB)).data.equals(Buffer.alloc(MIB, 'a '))).toBe(true);
  await core.close();
});

test('a copy that cannot be stored costs the image, not the write', async () => {
  const core = await Core.open();
  const { disk, tracker } = await core.disk('a', MIB);
  const storage = core.path('storage');
  const snapshot = await core.set.create([tracker], { path: storage, limitBytes: 8 * MIB });
  // The kernel refuses writes through a descriptor that is open for reading only: a failing storage on demand.
  const readOnly = fs.openSync(storage, 'r');
  const piece = snapshot.storage.pieces[0]!;
  Object.defineProperty(piece, 'fd', { value: readOnly });
  expect(await core.write(disk, 0, 64 * KIB, 1)).toBe(0);
  await expect.poll(() => snapshot.images[0]!.corrupted).not.toBe(0);
  expect((await core.read(disk, 0, 64 * KIB)).data.equals(Buffer.alloc(64 * KIB, 1))).toBe(true);
  expect(core.events.at(-1)).toMatchObject({ code: 'corrupted', disk: 'a' });
  fs.closeSync(readOnly);
  await core.close();
});

async function microtasks(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await Promise.resolve();
}

test('a take and a detach at once: one of the two is refused, whichever comes first', async () => {
  for (let turns = 0; turns < 12; turns++) {
    const core = await Core.open();
    const { disk, tracker } = await core.disk('a', MIB);
    const taking = core.set.create([tracker], MEMORY).then(
      () => 'taken',
      (error: unknown) => (error as BlksnapError).code,
    );
    await microtasks(turns);
    const detaching = disk.detachFilter(tracker).then(
      () => 'detached',
      (error: unknown) => (error as BlksnapError).code,
    );
    expect(['taken EBUSY', 'ENODEV detached']).toContain(`${await taking} ${await detaching}`);
    expect(disk.frozen).toBe(false);
    expect(await core.write(disk, 0, 4096, 1)).toBe(0);
    await core.close();
  }
});

test('a take and a growth at once leave a right image, or none', async () => {
  for (let turns = 0; turns < 12; turns++) {
    const core = await Core.open();
    const { disk, tracker, file } = await core.disk('a', MIB);
    fs.truncateSync(file, 4 * MIB);
    const taking = core.set.create([tracker], MEMORY).catch((error: unknown) => (error as BlksnapError).code);
    await microtasks(turns);
    await disk.resize();
    const taken = await taking;
    if (typeof taken === 'string') expect(taken).toBe('EBUSY');
    else {
      const image = taken.images[0]!;
      expect(await core.write(disk, 0, image.size, 1)).toBe(0);
      const { status, data } = await core.read(image, 0, image.size);
      expect(status).toBe(0);
      expect(data.subarray(0, MIB).equals(Buffer.alloc(MIB, 'a '))).toBe(true);
      expect(data.subarray(MIB).every((byte) => byte === 0)).toBe(true);
    }
    await core.close();
  }
});

/** A disk that is pulled out: everything ends with ENODEV from then on. */
class PulledOut extends BlockFilter {
  readonly name = 'pulledOut';
  readonly altitude = 1;
  gone = false;

  submit(bio: Bio): void {
    if (this.gone) bio.end(ERRNO.ENODEV);
    else this.below.submit(bio);
  }

  override async attach(): Promise<void> {}
  override async detach(): Promise<void> {}
  override async ctl(): Promise<unknown> {
    return null;
  }
}

test('a disk that is pulled out loses its image; the others of the snapshot go on', async () => {
  const core = await Core.open();
  const a = await core.disk('a', MIB);
  const b = await core.disk('b', MIB);
  const plug = new PulledOut();
  await a.disk.attachFilter(plug);
  const snapshot = await core.set.create([a.tracker, b.tracker], MEMORY);
  expect(await core.write(a.disk, 0, 4096, 1)).toBe(0);
  plug.gone = true;
  fs.rmSync(a.file);
  // What was saved can still be read; what was not is gone, and says so.
  expect((await core.read(snapshot.image('a')!, 0, 4096)).status).toBe(0);
  expect((await core.read(snapshot.image('a')!, 8192, 4096)).status).toBe(ERRNO.ENODEV);
  expect(await core.write(a.disk, 8192, 4096, 2)).toBe(ERRNO.ENODEV);
  expect(snapshot.image('a')!.corrupted).toBe(ERRNO.ENODEV);
  expect((await core.read(snapshot.image('a')!, 0, 4096)).status).toBe(ERRNO.EIO);
  expect(core.events).toMatchObject([{ code: 'corrupted', disk: 'a', error: 'ENODEV' }]);
  expect(await core.write(b.disk, 0, MIB, 3)).toBe(0);
  expect((await core.read(snapshot.image('b')!, 0, MIB)).data.equals(Buffer.alloc(MIB, 'b '))).toBe(true);
  await core.close();
});

test('with places in reserve, saved chunks are read from the place they are in', async () => {
  const core = await Core.open();
  const { disk, tracker } = await core.disk('a', MIB);
  const snapshot = await core.set.create([tracker], { path: ':memory:', limitBytes: 256 * KIB });
  for (let i = 0; i < 2; i++) await core.set.append(snapshot.id, { path: ':memory:', limitBytes: 512 * KIB });
  for (let offset = 0; offset < 512 * KIB; offset += 4 * KIB)
    expect(await core.write(disk, offset, 4 * KIB, 7)).toBe(0);
  expect(snapshot.images[0]!.corrupted).toBe(0);
  expect((await core.read(snapshot.images[0]!, 0, MIB)).data.equals(Buffer.alloc(MIB, 'a '))).toBe(true);
  await core.close();
});
