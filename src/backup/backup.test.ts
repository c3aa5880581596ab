import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { BackupWorld, DISK_BYTES } from '../../test/backup/world.ts';
import { READ } from '../block/bio.ts';
import type { Bio } from '../block/bio.ts';
import type { BlockDevice } from '../block/device.ts';
import { ERRNO } from '../util/errors.ts';
import { backUp } from './backup.ts';
import { lockDisk } from './lock.ts';
import { readManifest, listPoints } from './repository.ts';
import type { BackupSource } from './source.ts';
import { verify } from './verify.ts';

let world: BackupWorld;
beforeEach(async () => void (world = await BackupWorld.open()));
afterEach(() => world.close());

const kinds = (): string[] => readManifest(world.repository, 'vda').points.map((point) => point.kind);

/** The source, with reads from `offset` on that fail: a snapshot that is lost midway. */
function failingFrom(source: BackupSource, offset: number): BackupSource {
  const { device } = source;
  const failing: BlockDevice = Object.create(device, {
    submit: {
      value: (bio: Bio) =>
        bio.op === READ && bio.offset + bio.length > offset ? bio.end(ERRNO.EIO) : device.submit(bio),
    },
    size: { value: device.size },
    name: { value: device.name },
    extents: { value: (at: number, length: number) => device.extents(at, length) },
  }) as BlockDevice;
  return { ...source, device: failing };
}

test('fulls, increments and differentials all come back byte for byte', async () => {
  const modes = ['auto', 'auto', 'auto', 'differential', 'auto', 'full', 'differential', 'auto'] as const;
  for (const mode of modes) {
    world.scribble(5);
    await world.backUp({ mode });
  }
  expect(kinds()).toEqual([
    'full',
    'incremental',
    'incremental',
    'differential',
    'incremental',
    'full',
    'differential',
    'incremental',
  ]);
  expect(await world.wrongPoints()).toEqual([]);
  const report = await verify({ directory: world.repository, reactor: world.reactor, pool: world.pool });
  expect(report.damage).toEqual([]);
  expect(report.points.map((point) => point.restorable)).toEqual(modes.map(() => true));
});

test('an increment reads only what changed, and a backup without changes reads nothing', async () => {
  const full = await world.backUp();
  expect(full.progress).toMatchObject({ bytesDone: DISK_BYTES, bytesTotal: DISK_BYTES });
  world.scribble(2);
  const increment = await world.backUp();
  expect(increment.progress.bytesRead).toBeGreaterThan(0);
  expect(increment.progress.bytesRead).toBeLessThan(DISK_BYTES / 4);
  const nothing = await world.backUp();
  expect(nothing.progress.bytesRead).toBe(0);
  expect(await world.wrongPoints([nothing.point.id])).toEqual([]);
});

test('a disk of zeros is not read, and zeros written since hide the data below', async () => {
  await world.backUp();
  world.disk.fill(0);
  world.generationId = 'generation-2';
  const full = await world.backUp();
  expect([full.progress.bytesRead, full.point.bytesStored]).toEqual([0, 0]);
  world.scribble(10);
  await world.backUp();
  world.disk.fill(0);
  const source = await world.snapshot();
  const everything = [{ offset: 0, length: DISK_BYTES }];
  const { point } = await backUp(
    { ...source, changedSince: () => Promise.resolve(everything) },
    { directory: world.repository, reactor: world.reactor, pool: world.pool },
  );
  await source.device.close();
  expect(point.kind).toBe('incremental');
  world.contents.set(point.id, source.content);
  expect(await world.wrongPoints([point.id])).toEqual([]);
});

test('a source that cannot tell what changed is backed up in full, with the reason', async () => {
  const first = await world.backUp();
  const source = await world.snapshot();
  const { point } = await backUp(
    { ...source, changedSince: () => Promise.resolve(null) },
    { directory: world.repository, reactor: world.reactor, pool: world.pool },
  );
  await source.device.close();
  expect([point.kind, point.reason]).toEqual(['full', `the source cannot tell what changed since ${first.point.id}`]);
});

test('a parent whose file is gone or cut short forces a full', async () => {
  const first = await world.backUp();
  fs.truncateSync(path.join(world.diskPath, `${first.point.id}.qcow2`), 1000);
  const second = await world.backUp();
  expect(second.point.reason).toMatch(/is damaged: its file has 1000 bytes instead of/);
  fs.unlinkSync(path.join(world.diskPath, `${second.point.id}.qcow2`));
  expect((await world.backUp()).point.reason).toMatch(/is damaged: its file is missing/);
});

describe('when it cannot be finished, the points are as before', () => {
  let before: string[];
  beforeEach(async () => {
    await world.backUp();
    world.scribble(200);
    before = world.files();
  });

  const expectAsBefore = async (): Promise<void> => {
    expect(world.files()).toEqual(before);
    expect(await world.wrongPoints()).toEqual([]);
  };

  test('a read that fails', async () => {
    const source = await world.snapshot();
    const attempt = backUp(failingFrom(source, 5_000_000), {
      directory: world.repository,
      reactor: world.reactor,
      pool: world.pool,
    });
    await expect(attempt).rejects.toMatchObject({
      code: 'EIO',
      message: expect.stringMatching(/points are untouched: Cannot read .* at offset/),
    });
    await source.device.close();
    await expectAsBefore();
  });

  test('canceled', async () => {
    const cancel = new AbortController();
    const attempt = world.backUp({ signal: cancel.signal, onPlan: () => cancel.abort() });
    await expect(attempt).rejects.toMatchObject({ code: 'ECANCELED' });
    await expectAsBefore();
  });

  test('another disk, or another backup at work', async () => {
    const source = await world.snapshot();
    const options = { directory: world.repository, reactor: world.reactor, pool: world.pool };
    const other = { ...source, identity: 'disk-2', generationId: 'of another disk' };
    await expect(backUp(other, options)).rejects.toMatchObject({ code: 'EINVAL' });
    await expect(backUp({ ...source, disk: '../vda' }, options)).rejects.toMatchObject({ code: 'EINVAL' });
    const lock = lockDisk(world.diskPath, 'prune');
    await expect(backUp(source, options)).rejects.toMatchObject({
      code: 'EBUSY',
      message: expect.stringContaining('prune by process'),
    });
    lock.release();
    await source.device.close();
    await expectAsBefore();
  });
});

describe('after a crash', () => {
  test('in the middle of writing: the partial file is cleared away', async () => {
    await world.backUp();
    const before = world.files();
    fs.writeFileSync(path.join(world.diskPath, '20261120T000000Z-0000.qcow2.partial'), 'half');
    fs.writeFileSync(path.join(world.diskPath, '20261120T000000Z-0000-0123456789abcdef.sums'), 'half');
    fs.writeFileSync(path.join(world.diskPath, 'manifest.json.partial'), '{');
    fs.writeFileSync(path.join(world.diskPath, 'notes.txt'), 'not ours');
    world.scribble(1);
    const { point } = await world.backUp();
    const added = world.files().filter((name) => !before.includes(name) && !name.startsWith(point.id));
    expect(added).toEqual(['notes.txt']);
    expect(await world.wrongPoints([point.id])).toEqual([]);
  });

  test('between the rename and the manifest: the point does not exist, and the next one is right', async () => {
    const first = await world.backUp();
    const manifest = path.join(world.diskPath, 'manifest.json');
    const text = fs.readFileSync(manifest);
    world.scribble(3);
    const lost = await world.backUp();
    fs.writeFileSync(manifest, text);
    expect(listPoints(world.repository)[0]!.points.map(({ id }) => id)).toEqual([first.point.id]);
    world.scribble(3);
    const next = await world.backUp();
    expect(next.point.parent).toBe(first.point.id);
    expect(world.files().some((name) => name.startsWith(lost.point.id))).toBe(false);
    expect(await world.wrongPoints([next.point.id])).toEqual([]);
  });

  test('points whose manifest is lost are not taken for leftovers', async () => {
    await world.backUp();
    fs.unlinkSync(path.join(world.diskPath, 'manifest.json'));
    const before = world.files();
    await expect(world.backUp()).rejects.toMatchObject({ code: 'EEXIST' });
    expect(world.files()).toEqual(before);
  });
});
