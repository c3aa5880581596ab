/** Parameters: the defaults, what may be given in their place, and that it takes effect. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect, test } from 'vitest';
import { GIB, KIB, MIB } from '../util/units.ts';
import { Core } from '../../test/core.ts';
import { Embedded } from './embedded.ts';
import { DEFAULT_PARAMETERS, checkedParameters } from './parameters.ts';

test('the defaults are those of the kernel module where they mean the same', () => {
  expect(checkedParameters({})).toEqual(DEFAULT_PARAMETERS);
  expect(DEFAULT_PARAMETERS).toMatchObject({
    trackingBlockMinShift: 16,
    trackingBlockMaxShift: 26,
    trackingBlockMaxCount: 2_097_152,
    storagePortionBytes: 2_097_152 * 512,
  });
});

test('what is given takes the place of a default', () => {
  expect(checkedParameters({ cowTimeoutMs: 5, arenaBytes: GIB, copyMemoryBytes: undefined })).toEqual({
    ...DEFAULT_PARAMETERS,
    cowTimeoutMs: 5,
    arenaBytes: GIB,
  });
});

test.each([
  [{ trackingBlockMinShift: 11 }, /--tracking-block-min-shift 11: want a whole number from 12 to 30/],
  [{ trackingBlockMinShift: 27 }, /--tracking-block-min-shift 27: want at most --tracking-block-max-shift 26/],
  [{ trackingBlockMaxCount: 0 }, /--tracking-block-max-count 0/],
  [{ trackingBlockMaxCount: 1.5 }, /--tracking-block-max-count 1.5/],
  [{ cowTimeoutMs: NaN }, /--cow-timeout NaN ms/],
  [{ copyMemoryBytes: 100 * MIB }, /--copy-memory 100 MiB: want at most half of --arena 128 MiB/],
  [{ arenaBytes: 5 * GIB }, /--arena 5.00 GiB: want a whole number from 16.0 MiB to 4.00 GiB/],
  [{ copyMemoryBytes: MIB + 1 }, /--copy-memory .*multiple of 4096/],
  [{ copyUnitBytes: 12 * KIB }, /--copy-unit 12\.0 KiB: want a power of two from 4\.00 KiB to 1\.00 MiB/],
  [{ copyUnitBytes: 2 * KIB }, /--copy-unit 2\.00 KiB: want a power of two/],
  [{ copyUnitBytes: 2 * MIB }, /--copy-unit 2\.00 MiB: want a power of two/],
  [{ copyUnitBytes: NaN }, /--copy-unit .*want a power of two/],
  [{ storagePortionBytes: 0 }, /--storage-portion 0 B: want a whole number from 1.00 MiB/],
  [{ maxSnapshots: 0 }, /--max-snapshots 0/],
  [{ maxConnections: 4097 }, /--max-connections 4097: want a whole number from 1 to 4096/],
])('%o is refused by the name of its option', (given, message) => {
  expect(() => checkedParameters(given)).toThrow(
    expect.objectContaining({ code: 'EINVAL', message: expect.stringMatching(message) }),
  );
});

test('without a daemon they are checked and used, too', async () => {
  await expect(Embedded.open({ parameters: { copyUnitBytes: 100_000 } })).rejects.toMatchObject({
    code: 'EINVAL',
    message: expect.stringContaining('--copy-unit'),
  });
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-parameters-'));
  const file = path.join(directory, 'disk.img');
  fs.writeFileSync(file, Buffer.alloc(MIB, 1));
  const embedded = await Embedded.open({ parameters: { copyUnitBytes: 64 * KIB } });
  const disk = await embedded.openDisk(file);
  const snapshot = await embedded.snapshot([disk]);
  await disk.write(0, Buffer.alloc(512));
  await expect.poll(() => disk.tracker.cow.counters.copiedChunks).toBe(16);
  await snapshot.destroy();
  await embedded.close();
  fs.rmSync(directory, { recursive: true });
});

test('tracking limits make the blocks of a disk', async () => {
  const core = await Core.open({ parameters: { trackingBlockMinShift: 12, trackingBlockMaxShift: 13 } });
  const { tracker } = await core.disk('a', MIB);
  expect(tracker.cbt.blockSize).toBe(4 * KIB);
  await core.close();
  const few = await Core.open({ parameters: { trackingBlockMaxCount: 4 } });
  expect((await few.disk('a', MIB)).tracker.cbt.blockSize).toBe(256 * KIB);
  await few.close();
});

test('the storage grows by portions', async () => {
  const core = await Core.open({ parameters: { storagePortionBytes: 2 * MIB } });
  const { disk, tracker } = await core.disk('a', 8 * MIB);
  const { storage } = await core.set.create([tracker], { path: core.directory, limitBytes: Infinity });
  expect(storage.reservedBytes).toBe(2 * MIB);
  await core.write(disk, 0, 4 * KIB, 1);
  expect(storage.reservedBytes).toBe(2 * MIB);
  await core.write(disk, MIB, MIB, 1);
  await expect.poll(() => storage.reservedBytes).toBe(4 * MIB);
  await core.close();
});

test('no portion is larger than the disks together', async () => {
  const core = await Core.open();
  const a = await core.disk('a', 8 * MIB);
  const b = await core.disk('b', 4 * MIB + 512);
  const small = await core.disk('small', 64 * KIB);
  const storage = { path: core.directory, limitBytes: Infinity };
  const ofA = await core.set.create([a.tracker], storage);
  expect(ofA.storage.reservedBytes).toBe(8 * MIB);
  expect((await core.set.create([a.tracker, b.tracker], storage)).storage.reservedBytes).toBe(12 * MIB + 4 * KIB);
  expect((await core.set.create([small.tracker], storage)).storage.reservedBytes).toBe(MIB);
  await core.set.append(ofA.id, storage);
  expect(ofA.storage.reservedBytes).toBe(16 * MIB);
  await core.close();
});

test('snapshots are counted, of each disk and in all', async () => {
  const core = await Core.open({ parameters: { maxSnapshots: 3, maxSnapshotsPerDisk: 2 } });
  const a = (await core.disk('a', MIB)).tracker;
  const b = (await core.disk('b', MIB)).tracker;
  const storage = { path: ':memory:', limitBytes: MIB };
  const first = await core.set.create([a], storage);
  await core.set.create([a], storage);
  await expect(core.set.create([b, a], storage)).rejects.toMatchObject({
    code: 'EBUSY',
    message: expect.stringMatching(/disk "a".*2 .*--max-snapshots-per-disk/),
  });
  await core.set.create([b], storage);
  await expect(core.set.create([b], storage)).rejects.toMatchObject({
    code: 'EBUSY',
    message: expect.stringMatching(/3 .*--max-snapshots/),
  });
  await core.set.destroy(first.id);
  await core.set.create([a], storage);
  await core.close();
});
