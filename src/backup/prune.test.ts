import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { BackupWorld } from '../../test/backup/world.ts';
import { formatManifest, parseManifest } from './manifest.ts';
import { openPoint } from './open-point.ts';
import { prune } from './prune.ts';
import type { PruneResult } from './prune.ts';
import { readManifest } from './repository.ts';
import { verify } from './verify.ts';

let world: BackupWorld;
beforeEach(async () => void (world = await BackupWorld.open(2)));
afterEach(() => world.close());

const pruneTo = (keepLast: number): Promise<PruneResult> =>
  prune({ directory: world.repository, disk: 'vda', keepLast, reactor: world.reactor, pool: world.pool });

async function backUpAs(...modes: Array<'auto' | 'full' | 'differential'>): Promise<string[]> {
  const ids: string[] = [];
  for (const mode of modes) {
    ids.push((await world.backUp({ mode })).point.id);
    world.scribble(4);
  }
  return ids;
}

/** What is wrong with a directory that should have exactly these points. */
async function unsound(ids: readonly string[]): Promise<unknown[]> {
  const { points } = readManifest(world.repository, 'vda');
  const wanted = new Set(points.flatMap(({ id, sums }) => [`${id}.qcow2`, `${id}-${sums}.sums`])).add('manifest.json');
  const report = await verify({ directory: world.repository, reactor: world.reactor, pool: world.pool });
  return [
    ...points.filter(({ id }, index) => ids[index] !== id),
    ...ids.slice(points.length),
    ...world.files().filter((name) => !wanted.has(name)),
    ...(await world.wrongPoints(ids)),
    ...report.damage,
  ];
}

test('the oldest that stays becomes a full, and increments go on from there', async () => {
  const ids = await backUpAs('auto', 'auto', 'auto', 'auto');
  const result = await pruneTo(2);
  expect(result).toMatchObject({ removed: ids.slice(0, 2), rewritten: [ids[2]] });
  expect(readManifest(world.repository, 'vda').points.map(({ kind }) => kind)).toEqual(['full', 'incremental']);
  expect(await unsound(ids.slice(2))).toEqual([]);
  const next = await world.backUp();
  expect(next.point).toMatchObject({ kind: 'incremental', parent: ids[3] });
  expect(await unsound([...ids.slice(2), next.point.id])).toEqual([]);
});

test('differentials that lose their full share a new one', async () => {
  const ids = await backUpAs('full', 'differential', 'differential', 'differential', 'differential');
  const result = await pruneTo(3);
  expect(result.rewritten).toEqual(ids.slice(2));
  expect(readManifest(world.repository, 'vda').points.map(({ kind }) => kind)).toEqual([
    'full',
    'incremental',
    'incremental',
  ]);
  expect(await unsound(ids.slice(2))).toEqual([]);
});

test('what rests on nothing removed is only kept, and the bytes freed are those of the files', async () => {
  const ids = await backUpAs('full', 'auto', 'full', 'auto');
  const sizes = ids.slice(0, 2).map((id) => fs.statSync(path.join(world.diskPath, `${id}.qcow2`)).size);
  expect(await pruneTo(2)).toEqual({
    disk: 'vda',
    removed: ids.slice(0, 2),
    rewritten: [],
    bytesFreed: sizes[0]! + sizes[1]!,
  });
  expect(await unsound(ids.slice(2))).toEqual([]);
  expect(await pruneTo(2)).toMatchObject({ removed: [], bytesFreed: 0 });
});

test('an open point stays readable when its files go', async () => {
  const ids = await backUpAs('full', 'full');
  const { device } = await openPoint({ directory: world.repository, disk: 'vda', point: ids[0]! }, world);
  await pruneTo(1);
  expect((await device.extents(0, device.size)).length).toBeGreaterThan(1);
  await device.close();
});

test('damage is not copied into a new full: prune refuses, and removes nothing', async () => {
  const ids = await backUpAs('auto', 'auto', 'auto');
  const before = world.files();
  const file = path.join(world.diskPath, `${ids[0]}.qcow2`);
  const bytes = fs.readFileSync(file);
  bytes[200_000]! ^= 1;
  fs.writeFileSync(file, bytes);
  await expect(pruneTo(1)).rejects.toMatchObject({
    code: 'EBADMSG',
    message: expect.stringContaining(`"${file}", bytes 0 to`),
  });
  expect(world.files()).toEqual(before);
});

test('keeping none is refused', async () => {
  await backUpAs('auto');
  await expect(pruneTo(0)).rejects.toMatchObject({ code: 'EINVAL' });
});

describe('after a crash', () => {
  /** A prune's end state and what was there before it, to mix as a crash would. */
  async function pruned(): Promise<{ ids: string[]; before: Map<string, Buffer>; after: Map<string, Buffer> }> {
    const ids = await backUpAs('full', 'differential', 'differential', 'auto');
    const before = snapshotFiles();
    await pruneTo(3);
    return { ids, before, after: snapshotFiles() };
  }

  const snapshotFiles = (): Map<string, Buffer> =>
    new Map(world.files().map((name) => [name, fs.readFileSync(path.join(world.diskPath, name))]));

  function put(files: Map<string, Buffer>): void {
    for (const name of world.files()) fs.unlinkSync(path.join(world.diskPath, name));
    for (const [name, bytes] of files) fs.writeFileSync(path.join(world.diskPath, name), bytes);
  }

  /** The old manifest, telling of the rewrites that the new one has. */
  function announcing(before: Map<string, Buffer>, after: Map<string, Buffer>): Buffer {
    const [old, now] = [before, after].map((files) => parseManifest(String(files.get('manifest.json')), 'm'));
    for (const point of old!.points) {
      const found = now!.points.find((other) => other.id === point.id && other.sums !== point.sums);
      if (found === undefined) continue;
      const { kind, parent, bytesStored, fileBytes, sums } = found;
      point.rewrite = { kind, parent, bytesStored, fileBytes, sums };
    }
    return Buffer.from(formatManifest(old!));
  }

  // Two files are rewritten: each may or may not have taken its place when the power went.
  test.each([0, 1, 2, 3])('between the announcement and the end (%d), every point is right', async (renamed) => {
    const { ids, before, after } = await pruned();
    const files = new Map([...before, ['manifest.json', announcing(before, after)] as const]);
    for (const [index, id] of [ids[1], ids[2]].entries()) {
      const name = `${id}.qcow2`;
      if ((renamed & (1 << index)) !== 0) files.set(name, after.get(name)!);
      else files.set(`${name}.rewrite`, after.get(name)!);
    }
    for (const [name, bytes] of after) if (name.endsWith('.sums')) files.set(name, bytes);
    put(files);
    expect(await world.wrongPoints(ids)).toEqual([]);
    const report = await verify({ directory: world.repository, reactor: world.reactor, pool: world.pool });
    expect(report.damage).toEqual([]);
    const next = await world.backUp();
    expect(await unsound([...ids, next.point.id])).toEqual([]);
    await pruneTo(2);
    expect(await unsound([ids[3]!, next.point.id])).toEqual([]);
  });

  test('before the announcement, the new files are leftovers', async () => {
    const { ids, before, after } = await pruned();
    put(new Map([...before, [`${ids[1]}.qcow2.rewrite`, after.get(`${ids[1]}.qcow2`)!]]));
    await pruneTo(3);
    expect(await unsound(ids.slice(1))).toEqual([]);
  });

  test('before the old files are removed, they are leftovers', async () => {
    const { ids, before, after } = await pruned();
    put(new Map([...before, ...after]));
    // Else a power loss could bring the old manifest back, and not the files.
    const calls: string[] = [];
    const heard = (name: string): void => void calls.push(name);
    const [sync, unlink] = [fs.fsyncSync, fs.unlinkSync];
    vi.spyOn(fs, 'fsyncSync').mockImplementation((fd) => (heard(fs.readlinkSync(`/proc/self/fd/${fd}`)), sync(fd)));
    vi.spyOn(fs, 'unlinkSync').mockImplementation((file) => (heard('unlink'), unlink(file)));
    const next = await world.backUp();
    vi.restoreAllMocks();
    expect(calls[calls.indexOf('unlink') - 1]).toBe(world.diskPath);
    expect(await unsound([...ids.slice(1), next.point.id])).toEqual([]);
  });
});
