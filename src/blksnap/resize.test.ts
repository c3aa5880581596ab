/** Disks that grow and shrink while they are served, with and without a snapshot held. */

import fs from 'node:fs';
import { expect, test } from 'vitest';
import { READ, runBio } from '../block/bio.ts';
import { ERRNO } from '../util/errors.ts';
import { KIB, MIB } from '../util/units.ts';
import { Core } from '../../test/core.ts';

const MEMORY = { path: ':memory:', limitBytes: 64 * MIB };
/** No whole chunks. */
const SIZE = MIB + 512;

test('a disk that grew: the image stays as it was, and nothing bypasses copy-on-write', async () => {
  const core = await Core.open();
  const { disk, tracker, file } = await core.disk('a', SIZE);
  const before = fs.readFileSync(file);
  const snapshot = await core.set.create([tracker], MEMORY);
  const image = snapshot.images[0]!;
  const { generationId } = tracker.cbt;
  fs.truncateSync(file, 3 * MIB);
  expect(await core.write(disk, 2 * MIB, 4096, 1)).toBe(ERRNO.ENOSPC);
  expect(await disk.resize()).toBe(3 * MIB);

  expect(tracker.cbt.generationId).not.toBe(generationId);
  expect(tracker.cbt.reason).toBe(`the disk was resized from ${SIZE} to ${3 * MIB} bytes`);
  expect(tracker.cbt.deviceSize).toBe(3 * MIB);
  // Across the old end, beyond it, and below it.
  for (const offset of [MIB - 8 * KIB, 2 * MIB, 0]) expect(await core.write(disk, offset, 64 * KIB, 5)).toBe(0);
  await expect.poll(() => tracker.cow.counters.copiedChunks).toBe(16 + 3);
  expect(image.size).toBe(SIZE);
  expect((await core.read(image, 0, SIZE)).data.equals(before)).toBe(true);
  expect(await runBio(core.pool, image, { op: READ, offset: SIZE, length: 512, at: 0 })).not.toBe(0);
  expect((await core.read(disk, 2 * MIB, 64 * KIB)).data.equals(Buffer.alloc(64 * KIB, 5))).toBe(true);
  expect(tracker.cbt.map[32]).toBe(1);

  const second = await core.set.create([tracker], MEMORY);
  expect(second.images[0]!.size).toBe(3 * MIB);
  expect(await core.write(disk, 0, 3 * MIB, 6)).toBe(0);
  expect((await core.read(second.images[0]!, 2 * MIB, 64 * KIB)).data.equals(Buffer.alloc(64 * KIB, 5))).toBe(true);
  expect((await core.read(image, 0, SIZE)).data.equals(before)).toBe(true);
  await core.close();
});

test('a disk that shrank: images that need what was cut off are lost, and no others', async () => {
  const core = await Core.open();
  const { disk, tracker, file } = await core.disk('a', SIZE);
  const saved = await core.set.create([tracker], MEMORY);
  await core.write(disk, 512 * KIB, SIZE - 512 * KIB, 1);
  const unsaved = await core.set.create([tracker], MEMORY);
  fs.truncateSync(file, 512 * KIB);
  expect(await disk.resize()).toBe(512 * KIB);
  expect(core.events).toMatchObject([{ code: 'corrupted', error: 'ESTALE', snapshotId: unsaved.id }]);
  expect(saved.images[0]!.corrupted).toBe(0);
  expect(await core.write(disk, 512 * KIB, 4096, 1)).toBe(ERRNO.ENOSPC);

  const small = await core.set.create([tracker], MEMORY);
  fs.truncateSync(file, 2 * MIB);
  await disk.resize();
  expect(await core.write(disk, 0, 2 * MIB, 2)).toBe(0);
  expect((await core.read(small.images[0]!, 0, 512 * KIB)).data.equals(Buffer.alloc(512 * KIB, 'a '))).toBe(true);
  expect((await core.read(saved.images[0]!, 0, SIZE)).data.equals(Buffer.alloc(SIZE, 'a '))).toBe(true);
  await core.close();
});

test('the same size changes nothing; one that a disk cannot have is refused', async () => {
  const core = await Core.open();
  const { disk, tracker, file } = await core.disk('a', MIB);
  const { generationId } = tracker.cbt;
  expect(await disk.resize()).toBe(MIB);
  expect(tracker.cbt.generationId).toBe(generationId);
  fs.truncateSync(file, MIB + 100);
  await expect(disk.resize()).rejects.toMatchObject({
    code: 'EINVAL',
    message: expect.stringMatching(/not a multiple of 512/),
  });
  expect(disk.size).toBe(MIB);
  expect(await core.write(disk, 0, 4096, 1)).toBe(0);
  expect(disk.frozen).toBe(false);
  await core.close();
});

test('the history goes on where the new one began, after the disk is attached again', async () => {
  const core = await Core.open();
  const { disk, tracker, file } = await core.disk('a', MIB);
  fs.truncateSync(file, 2 * MIB);
  await disk.resize();
  const { generationId } = tracker.cbt;
  await disk.close();
  const again = await core.disk('a', 2 * MIB);
  expect(again.tracker.cbt.reason).toBe('');
  expect(again.tracker.cbt.generationId).toBe(generationId);
  await core.close();
});
