/** Diff storage that grows while its snapshot is held: more places, higher limits, and what refuses them. */

import fs from 'node:fs';
import { describe, expect, test } from 'vitest';
import { KIB, MIB } from '../util/units.ts';
import { Core } from '../../test/core.ts';

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
