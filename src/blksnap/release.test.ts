/** What a discard does: on a disk, on an image, and on an image that is read once. The policy is in docs/discard.md. */

import { describe, expect, test } from 'vitest';
import { DISCARD, WRITE_ZEROES, runBio } from '../block/bio.ts';
import { ERRNO } from '../util/errors.ts';
import type { Completion } from '../io/reactor.ts';
import { KIB, MIB } from '../util/units.ts';
import { Core } from '../../test/core.ts';
import { ReadOnceImage } from './read-once-image.ts';

const MEMORY = { path: ':memory:', limitBytes: 64 * MIB };
const SIZE = 16 * MIB;

const discard = (core: Core, sink: Parameters<typeof runBio>[1], offset: number, length: number) =>
  runBio(core.pool, sink, { op: DISCARD, offset, length });

test('a discard of a disk is a change, is copied first, and leaves the image as it was', async () => {
  const core = await Core.open();
  const { disk, tracker } = await core.disk('a', SIZE);
  const snapshot = await core.set.create([tracker], MEMORY);
  expect(await discard(core, disk, MIB, MIB)).toBe(0);
  expect([...tracker.cbt.map.entries()].filter(([, number]) => number === 2).map(([block]) => block)).toEqual(
    Array.from({ length: 16 }, (_, i) => 16 + i),
  );
  expect((await core.read(disk, MIB, MIB)).data.equals(Buffer.alloc(MIB))).toBe(true);
  expect((await core.read(snapshot.images[0]!, 0, SIZE)).data.equals(Buffer.alloc(SIZE, 'a '))).toBe(true);
  expect(snapshot.storage.usedBytes).toBe(MIB);
  // Once copied, or zeros already, another one costs nothing.
  expect(await discard(core, disk, MIB, MIB)).toBe(0);
  expect(snapshot.storage.usedBytes).toBe(MIB);
  await core.close();
});

test('a discard of an image zeroes the image, and is a change in its map and in the live one', async () => {
  const core = await Core.open();
  const { disk, tracker } = await core.disk('a', SIZE);
  const image = (await core.set.create([tracker], MEMORY)).images[0]!;
  expect(await discard(core, image, 0, 64 * KIB)).toBe(0);
  expect(
    (await core.read(image, 0, 128 * KIB)).data.equals(
      Buffer.concat([Buffer.alloc(64 * KIB), Buffer.alloc(64 * KIB, 'a ')]),
    ),
  ).toBe(true);
  expect((await core.read(disk, 0, 4 * KIB)).data.equals(Buffer.alloc(4 * KIB, 'a '))).toBe(true);
  expect([image.area.frozenMap[0], tracker.cbt.map[0]]).toEqual([1, 2]);
  await core.close();
});

describe('an image that is read once', () => {
  async function once() {
    const core = await Core.open();
    const { disk, tracker } = await core.disk('a', SIZE);
    const snapshot = await core.set.create([tracker], MEMORY);
    const image = snapshot.images[0]!;
    return { core, disk, tracker, snapshot, image, reader: new ReadOnceImage(image, 'once') };
  }

  test('frees what its reader is done with, and copies nothing there any more', async () => {
    const { core, disk, tracker, snapshot, image, reader } = await once();
    await core.write(disk, 0, 2 * MIB, 1);
    await expect.poll(() => tracker.cow.counters.copiedChunks).toBe(512);
    const marks = [...tracker.cbt.map];
    expect(await discard(core, reader, 0, 6 * MIB + 100)).toBe(0);
    await expect.poll(() => snapshot.storage.usedBytes).toBe(0);
    expect(tracker.cow.counters.releasedChunks).toBe(6 * 256);
    expect([...tracker.cbt.map]).toEqual(marks);
    const { reads } = tracker.cow.counters;
    expect(await core.write(disk, 0, 6 * MIB, 2)).toBe(0);
    expect(tracker.cow.counters.reads).toBe(reads);
    await expect.poll(() => snapshot.storage.usedBytes).toBe(0);
    for (const offset of [0, 3 * MIB, 6 * MIB - 4 * KIB]) {
      expect((await core.read(reader, offset, 4 * KIB)).status).toBe(ERRNO.EIO);
      expect((await core.read(image, offset, 8 * KIB)).status).toBe(ERRNO.EIO);
    }
    expect((await core.read(reader, 6 * MIB, 10 * MIB)).data.equals(Buffer.alloc(10 * MIB, 'a '))).toBe(true);
    await core.write(disk, 6 * MIB, 8 * KIB, 2);
    expect((await core.read(reader, 6 * MIB, 8 * KIB)).data.equals(Buffer.alloc(8 * KIB, 'a '))).toBe(true);
    expect(image.corrupted).toBe(0);
    await core.close();
  });

  test('a read under way of what is freed ends with EIO', async () => {
    const core = await Core.open();
    const { disk, tracker } = await core.disk('a', SIZE);
    const image = (await core.set.create([tracker], { ...MEMORY, path: core.directory })).images[0]!;
    await core.write(disk, 0, MIB, 1);
    await expect.poll(() => tracker.cow.counters.copiedChunks).toBe(256);
    await expect.poll(() => image.area.busy).toBe(false);
    // As much as is read at once.
    const [freed, kept] = [core.read(image, 0, 32 * KIB), core.read(image, 64 * KIB, 32 * KIB)];
    image.release(0, 32 * KIB);
    expect((await freed).status).toBe(ERRNO.EIO);
    expect((await kept).data.equals(Buffer.alloc(32 * KIB, 'a '))).toBe(true);
    await core.close();
  });

  test('never takes anything from older or newer snapshots', async () => {
    const core = await Core.open();
    const { disk, tracker } = await core.disk('a', SIZE);
    const older = (await core.set.create([tracker], MEMORY)).images[0]!;
    await core.write(disk, 0, MIB, 1);
    const middle = (await core.set.create([tracker], MEMORY)).images[0]!;
    await core.write(disk, 0, 2 * MIB, 2);
    const newest = (await core.set.create([tracker], MEMORY)).images[0]!;
    const wantMiddle = Buffer.concat([Buffer.alloc(MIB, 1), Buffer.alloc(SIZE - MIB, 'a ')]);
    const wantNewest = Buffer.concat([Buffer.alloc(2 * MIB, 2), Buffer.alloc(SIZE - 2 * MIB, 'a ')]);
    middle.release(0, SIZE);
    await core.write(disk, 0, 4 * MIB, 3);
    expect((await core.read(older, 0, SIZE)).data.equals(Buffer.alloc(SIZE, 'a '))).toBe(true);
    expect((await core.read(newest, 0, SIZE)).data.equals(wantNewest)).toBe(true);
    // What the older one reads through the middle one is kept, and right; the rest is gone.
    expect((await core.read(middle, MIB, MIB)).data.equals(wantMiddle.subarray(MIB, 2 * MIB))).toBe(true);
    expect((await core.read(middle, 0, MIB)).status).toBe(ERRNO.EIO);
    await core.set.destroy(newest.area.snapshotId);
    expect((await core.read(older, 0, SIZE)).data.equals(Buffer.alloc(SIZE, 'a '))).toBe(true);
    await core.close();
  });

  test('makes room for more in a storage with a limit', async () => {
    const core = await Core.open();
    const { disk, tracker } = await core.disk('a', SIZE);
    const snapshot = await core.set.create([tracker], { path: core.directory, limitBytes: 2 * MIB });
    const image = snapshot.images[0]!;
    // The reader keeps ahead of the writer, whose old data is ten times what the storage holds.
    for (let offset = 0; offset < SIZE; offset += MIB) {
      await core.write(disk, SIZE - MIB - offset, MIB, 1);
      await expect.poll(() => image.area.busy).toBe(false);
      image.release(SIZE - MIB - offset, MIB);
      expect(image.corrupted).toBe(0);
    }
    await expect.poll(() => snapshot.storage.usedBytes).toBe(0);
    await core.close();
  });

  test.each([
    ['is', 0],
    ['could not be', -ERRNO.EOPNOTSUPP],
  ])('counts as free what %s punched, and nothing before', async (_what, result) => {
    const { core, disk, image, snapshot } = await once();
    await core.write(disk, 0, MIB, 1);
    await expect.poll(() => image.area.busy).toBe(false);
    const { reactor } = core;
    const { allocate } = reactor;
    const held: Completion[] = [];
    reactor.allocate = (_fd, _mode, _offset, _length, completion) => held.push(completion);
    image.release(0, MIB);
    reactor.allocate = allocate;
    expect(held.length).toBeGreaterThan(0);
    expect(snapshot.storage.usedBytes).toBe(MIB);
    for (const completion of held) completion.complete(result);
    expect(snapshot.storage.usedBytes).toBe(result === 0 ? 0 : MIB);
    await core.close();
  });

  test('refuses writes', async () => {
    const { core, reader } = await once();
    expect(await core.write(reader, 0, 4096, 1)).toBe(ERRNO.EPERM);
    expect(await runBio(core.pool, reader, { op: WRITE_ZEROES, offset: 0, length: 4096 })).toBe(ERRNO.EPERM);
    expect(await discard(core, reader, SIZE, 4096)).not.toBe(0);
    await core.close();
  });

  test('takes no memory for what was never stored', async () => {
    const { core, disk, image, tracker } = await once();
    for (let offset = 0; offset < SIZE; offset += 64 * KIB) image.release(offset, 64 * KIB);
    expect([...image.area.table.entries()]).toEqual([]);
    await core.write(disk, 0, SIZE, 1);
    expect(tracker.cow.counters).toMatchObject({ reads: 0, releasedChunks: SIZE / 4096 });
    await core.close();
  });
});
