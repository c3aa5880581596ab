/** Diff storage that grows while its snapshot is held: more places, higher limits, and what refuses them. */

import { spawnSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import fs from 'node:fs';
import { describe, expect, test } from 'vitest';
import { openFileDevice } from '../block/file-device.ts';
import { ALLOCATE_RESERVE, completed } from '../io/reactor.ts';
import { KIB, MIB } from '../util/units.ts';
import { isZero } from '../util/zeroes.ts';
import { DiffStorage } from './diff-storage.ts';
import { MEMORY_STORAGE, checkStoragePlace } from './storage-place.ts';
import { Core } from '../../test/core.ts';
import { requireRoot } from '../../test/requirements.ts';

const small = { path: ':memory:', limitBytes: 256 * KIB };

describe('a storage of several places', () => {
  test('fills them one after another, and reads across them', async () => {
    const core = await Core.open();
    const { disk, tracker } = await core.disk('a', 2 * MIB);
    const snapshot = await core.set.create([tracker], small);
    await core.set.append(snapshot.id, { path: core.directory, limitBytes: 300 * KIB });
    await core.set.append(snapshot.id, { path: core.path('third'), limitBytes: 2 * MIB });
    for (let offset = 0; offset < 2 * MIB; offset += 52 * KIB) {
      expect(await core.write(disk, offset, Math.min(52 * KIB, 2 * MIB - offset), 1)).toBe(0);
    }
    const image = snapshot.images[0]!;
    expect(image.corrupted).toBe(0);
    expect((await core.read(image, 0, 2 * MIB)).data.equals(Buffer.alloc(2 * MIB, 'a '))).toBe(true);
    const { storage } = snapshot;
    expect(storage.usedBytes).toBe(2 * MIB);
    expect(storage.limitBytes).toBe(556 * KIB + 2 * MIB);
    expect(storage.pieces.map(({ used }) => used)).toEqual([52, 65, 395]);
    await core.set.destroy(snapshot.id);
    expect(fs.existsSync(core.path('third'))).toBe(false);
    await core.close();
  });

  test('takes writes to the image too', async () => {
    const core = await Core.open();
    const { tracker } = await core.disk('a', MIB);
    const snapshot = await core.set.create([tracker], { path: ':memory:', limitBytes: 8 * KIB });
    await core.set.append(snapshot.id, { path: ':memory:', limitBytes: MIB });
    const image = snapshot.images[0]!;
    for (let i = 0; i < 8; i++) expect(await core.write(image, i * 6 * KIB, 5 * KIB, i + 1)).toBe(0);
    for (let i = 0; i < 8; i++) {
      expect((await core.read(image, i * 6 * KIB, 5 * KIB)).data.equals(Buffer.alloc(5 * KIB, i + 1))).toBe(true);
    }
    await core.close();
  });

  test('tells lowSpace again after each enlargement, and loses nothing when it is heeded', async () => {
    const core = await Core.open();
    const { disk, tracker } = await core.disk('a', 4 * MIB);
    const snapshot = await core.set.create([tracker], small);
    for (let offset = 0; offset < 4 * MIB; offset += 16 * KIB) {
      const heard = core.events.length;
      await core.write(disk, offset, 16 * KIB, 1);
      if (core.events.length > heard) await core.set.raiseLimit(snapshot.id, snapshot.storage.limitBytes + MIB);
    }
    expect(core.events.map(({ code }) => code)).toEqual(['lowSpace', 'lowSpace', 'lowSpace', 'lowSpace', 'lowSpace']);
    expect((await core.read(snapshot.images[0]!, 0, 4 * MIB)).data.equals(Buffer.alloc(4 * MIB, 'a '))).toBe(true);
    await core.close();
  });
});

test.each(['directory', 'tmpfs'])(
  'an empty file in a %s is empty again at the end, and can be used again',
  async (where) => {
    const core = await Core.open();
    const { disk, tracker } = await core.disk('a', MIB);
    const path = where === 'tmpfs' ? `/dev/shm/blksnap-${process.pid}` : core.path('given');
    for (const limitBytes of [MIB, 2 * MIB]) {
      fs.writeFileSync(path, '');
      const { id } = await core.set.create([tracker], { path, limitBytes });
      await core.write(disk, 0, MIB, 1);
      await expect.poll(() => fs.statSync(path).blocks).toBeGreaterThan(0);
      await core.set.destroy(id);
      expect(fs.statSync(path)).toMatchObject({ size: 0, blocks: 0 });
    }
    fs.rmSync(path);
    await core.close();
  },
);

/** Preallocates as fallocate(1) does. */
async function reserve(core: Core, path: string, length: number): Promise<void> {
  const fd = fs.openSync(path, 'w');
  expect(await completed((c) => core.reactor.allocate(fd, ALLOCATE_RESERVE, 0, length, c))).toBeGreaterThanOrEqual(0);
  fs.closeSync(fd);
}

function hole(_core: Core, path: string, length: number): void {
  fs.writeFileSync(path, '');
  fs.truncateSync(path, length);
}

function zeros(_core: Core, path: string, length: number): void {
  fs.writeFileSync(path, Buffer.alloc(length));
}

const PREALLOCATED = 512 * KIB;

describe.each(['directory', 'tmpfs'])('a file in a %s that has a size', (where) => {
  const pathIn = (core: Core): string =>
    where === 'tmpfs' ? `/dev/shm/blksnap-${process.pid}-preallocated` : core.path('given');

  test.each([
    ['reserved space', reserve],
    ['a hole', hole],
    ['zeros', zeros],
  ] as const)('and nothing but %s is storage beyond that size, and as it was at the end', async (_what, make) => {
    const core = await Core.open();
    const path = pathIn(core);
    await make(core, path, PREALLOCATED);
    const { blocks } = fs.statSync(path);
    const { disk, tracker } = await core.disk('a', MIB);
    for (const fill of [1, 2]) {
      const { id, images } = await core.set.create([tracker], { path, limitBytes: 2 * MIB });
      const before = (await core.read(images[0]!, 0, MIB)).data;
      await core.write(disk, 0, MIB, fill);
      expect((await core.read(images[0]!, 0, MIB)).data.equals(before)).toBe(true);
      await expect.poll(() => isZero(fs.readFileSync(path))).toBe(false);
      await core.set.destroy(id);
      expect(fs.statSync(path)).toMatchObject({ size: PREALLOCATED, blocks });
      expect(isZero(fs.readFileSync(path))).toBe(true);
    }
    fs.rmSync(path);
    await core.close();
  });

  test('and a byte of content is refused, and stays as it is', async () => {
    const core = await Core.open();
    const path = pathIn(core);
    await reserve(core, path, PREALLOCATED);
    const fd = fs.openSync(path, 'r+');
    fs.writeSync(fd, 'x', PREALLOCATED - 1);
    fs.closeSync(fd);
    const content = fs.readFileSync(path);
    const { tracker } = await core.disk('a', MIB);
    const refusal = { code: 'EEXIST', message: expect.stringContaining('it has content') };
    await expect(core.set.create([tracker], { path, limitBytes: MIB })).rejects.toMatchObject(refusal);
    await expect(checkStoragePlace(path, 'Cannot')).rejects.toMatchObject(refusal);
    expect(fs.readFileSync(path).equals(content)).toBe(true);
    fs.rmSync(path);
    await core.close();
  });

  test('is no storage while it is that of another snapshot, or a disk', async () => {
    const core = await Core.open();
    const path = pathIn(core);
    await reserve(core, path, PREALLOCATED);
    const { tracker } = await core.disk('a', MIB);
    const { id } = await core.set.create([tracker], { path, limitBytes: MIB });
    await expect(core.set.create([tracker], { path, limitBytes: MIB })).rejects.toMatchObject({ code: 'EBUSY' });
    expect(fs.statSync(path).size).toBeGreaterThanOrEqual(PREALLOCATED);
    await core.set.destroy(id);
    const blank = openFileDevice(path, { reactor: core.reactor });
    await expect(core.set.create([tracker], { path, limitBytes: MIB })).rejects.toMatchObject({ code: 'EBUSY' });
    await blank.close();
    fs.rmSync(path);
    await core.close();
  });
});

test('a file that has a size is no storage of a persistent snapshot', async () => {
  const core = await Core.open();
  hole(core, core.path('given'), PREALLOCATED);
  const options = { path: core.path('given'), limitBytes: MIB, persistentId: randomUUID() };
  await expect(DiffStorage.open(core.reactor, options, { lowSpace() {}, lost() {} })).rejects.toMatchObject({
    code: 'EEXIST',
    message: expect.stringContaining('it is not empty'),
  });
  expect(fs.statSync(core.path('given'))).toMatchObject({ size: PREALLOCATED, blocks: 0 });
  await core.close();
});

test('a file that a loop device writes to is no storage, though nothing is in it', async (context) => {
  requireRoot(context);
  const core = await Core.open();
  const path = core.path('given');
  hole(core, path, PREALLOCATED);
  const { stdout } = spawnSync('losetup', ['--find', '--show', path], { encoding: 'utf8' });
  context.skip(!stdout, 'needs a loop device');
  const loop = stdout.trim();
  const { tracker } = await core.disk('a', MIB);
  try {
    await expect(core.set.create([tracker], { path, limitBytes: MIB })).rejects.toMatchObject({
      code: 'EBUSY',
      message: expect.stringContaining(`loop device ${loop.slice('/dev/'.length)} writes to it`),
    });
  } finally {
    spawnSync('losetup', ['-d', loop]);
  }
  await core.close();
});

test('a new file is no storage of a second snapshot, though nothing is in it yet', async () => {
  const core = await Core.open();
  const { tracker } = await core.disk('a', MIB);
  await core.set.create([tracker], { path: core.path('new'), limitBytes: MIB });
  const again = core.set.create([tracker], { path: core.path('new'), limitBytes: MIB });
  await expect(again).rejects.toMatchObject({ code: 'EBUSY' });
  expect(fs.existsSync(core.path('new'))).toBe(true);
  await core.close();
});

test('a file whose zeros are too many to be read is refused', async () => {
  const core = await Core.open();
  const path = `/dev/shm/blksnap-${process.pid}-large`;
  zeros(core, path, 257 * MIB);
  await expect(checkStoragePlace(path, 'Cannot')).rejects.toMatchObject({
    code: 'EEXIST',
    message: expect.stringContaining('more than 256 MiB of it would have to be read'),
  });
  fs.rmSync(path);
  await core.close();
});

test('a place that cannot be used is known before it is touched', async () => {
  const core = await Core.open();
  for (const [path, code] of [
    [core.path('none/file'), 'ENOENT'],
    ['/dev/no-such-device', 'ENOENT'],
    ['/proc/self/mem', 'EINVAL'],
    ['/sys/new', 'EINVAL'],
  ] as const)
    await expect(checkStoragePlace(path, 'Cannot')).rejects.toMatchObject({ code });
  for (const path of [core.path('new'), core.directory, MEMORY_STORAGE]) await checkStoragePlace(path, 'Cannot');
  expect(fs.existsSync(core.path('new'))).toBe(false);
  await core.close();
});

test('an empty file whose use is refused stays empty', async () => {
  const core = await Core.open();
  const { tracker } = await core.disk('a', MIB);
  fs.writeFileSync(core.path('given'), '');
  const { id } = await core.set.create([tracker], small);
  const refused = (): never => {
    throw new Error('refused');
  };
  const place = { path: core.path('given'), limitBytes: MIB };
  await expect(core.set.get(id).storage.addPlace(place, { check: refused, before: refused })).rejects.toThrow(
    'refused',
  );
  await expect(core.set.get(id).storage.addPlace(place, { before: refused })).rejects.toThrow('refused');
  expect(fs.statSync(core.path('given'))).toMatchObject({ size: 0, blocks: 0 });
  await core.close();
});

test.each([
  ['a lower limit', 128 * KIB],
  ['the same limit', 256 * KIB],
])('%s is refused', async (_what, limitBytes) => {
  const core = await Core.open();
  const { tracker } = await core.disk('a', MIB);
  const { id } = await core.set.create([tracker], small);
  await expect(core.set.raiseLimit(id, limitBytes)).rejects.toThrow(/it is 256 KiB, want more/);
  await core.close();
});

test('files of the kernel are no places, though they look empty', async () => {
  const core = await Core.open();
  const { tracker } = await core.disk('a', MIB);
  for (const path of ['/proc/self/mem', '/proc', '/sys/kernel'])
    await expect(core.set.create([tracker], { ...small, path })).rejects.toMatchObject({ code: 'EINVAL' });
  await core.close();
});

test('a place with content is refused, and the storage goes on as before', async () => {
  const core = await Core.open();
  const { disk, tracker, file } = await core.disk('a', MIB);
  const snapshot = await core.set.create([tracker], { path: ':memory:', limitBytes: 2 * MIB });
  await expect(core.set.append(snapshot.id, { path: file, limitBytes: MIB })).rejects.toMatchObject({ code: 'EEXIST' });
  await expect(core.set.append('none', { path: file, limitBytes: MIB })).rejects.toMatchObject({ code: 'ESRCH' });
  await core.write(disk, 0, MIB, 1);
  expect((await core.read(snapshot.images[0]!, 0, MIB)).data.equals(Buffer.alloc(MIB, 'a '))).toBe(true);
  await core.close();
});
