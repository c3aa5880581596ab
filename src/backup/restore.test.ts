import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { BackupWorld, DISK_BYTES } from '../../test/backup/world.ts';
import { openDevice } from '../block/open.ts';
import { CHECKSUM_RANGE_BYTES } from '../util/checksum.ts';
import { listPoints } from './repository.ts';
import { restore } from './restore.ts';
import type { RestoreOptions, RestoreProgress } from './restore.ts';
import { verify } from './verify.ts';

let world: BackupWorld;
let point: string;
beforeEach(async () => {
  world = await BackupWorld.open();
  await world.backUp();
  world.scribble(3);
  point = (await world.backUp()).point.id;
});
afterEach(() => world.close());

function options(to: string, more: Partial<RestoreOptions> = {}): RestoreOptions {
  return { directory: world.repository, disk: 'vda', to, reactor: world.reactor, pool: world.pool, ...more };
}

function expectContent(file: string): void {
  expect(Buffer.compare(fs.readFileSync(file), world.contents.get(point)!)).toBe(0);
}

describe('the target', () => {
  test('is a new file, sparse, whole, and told about as it grows', async () => {
    const to = world.newPath();
    const heard: RestoreProgress[] = [];
    const result = await restore(options(to, { onProgress: (progress) => void heard.push(progress) }));
    expect(result.point.id).toBe(point);
    expectContent(to);
    expect(fs.statSync(to).blocks * 512).toBeLessThan(DISK_BYTES);
    expect(heard.findLast(({ phase }) => phase === 'copy')).toMatchObject({
      bytesDone: DISK_BYTES,
      bytesTotal: DISK_BYTES,
    });
  });

  test('may be an empty file, whose mode it keeps', async () => {
    const to = world.newPath();
    fs.writeFileSync(to, '', { mode: 0o640 });
    await restore(options(to));
    expectContent(to);
    expect(fs.statSync(to).mode & 0o777).toBe(0o640);
  });

  test('is not overwritten unless that was said', async () => {
    const to = world.newPath();
    const old = Buffer.alloc(DISK_BYTES + 512, 'x');
    fs.writeFileSync(to, old);
    await expect(restore(options(to))).rejects.toMatchObject({ code: 'EEXIST' });
    expect(Buffer.compare(fs.readFileSync(to), old)).toBe(0);
    await restore(options(to, { overwrite: true }));
    expectContent(to);
  });

  test('that is smaller, a directory, in use or half restored is refused', async () => {
    const small = world.newPath();
    fs.writeFileSync(small, Buffer.alloc(4096));
    await expect(restore(options(small))).rejects.toMatchObject({
      code: 'EINVAL',
      message: expect.stringContaining('smaller'),
    });
    await expect(restore(options(world.directory))).rejects.toMatchObject({ code: 'EISDIR' });
    const attached = await openDevice(small, { reactor: world.reactor });
    await expect(restore(options(small, { overwrite: true }))).rejects.toMatchObject({ code: 'EBUSY' });
    await attached.close();
    fs.writeFileSync(`${small}2.partial`, '');
    await expect(restore(options(`${small}2`))).rejects.toMatchObject({
      code: 'EEXIST',
      message: expect.stringContaining('.partial'),
    });
  });

  test('is left as it was when the restore is canceled', async () => {
    const to = world.newPath();
    const cancel = new AbortController();
    const onProgress = ({ phase, bytesDone }: RestoreProgress): void => {
      if (phase === 'copy' && bytesDone > 0) cancel.abort();
    };
    await expect(restore(options(to, { signal: cancel.signal, onProgress }))).rejects.toMatchObject({
      code: 'ECANCELED',
    });
    expect(fs.existsSync(to) || fs.existsSync(`${to}.partial`)).toBe(false);
  });
});

test('disks and points that are not there are answered with those that are', async () => {
  await expect(restore(options('x', { disk: 'vdb' }))).rejects.toThrow(/no backups of a disk "vdb"; it has: vda/);
  await expect(restore(options('x', { point: '20261120T000000Z-0000' }))).rejects.toThrow(
    new RegExp(`it has: .*${point}`),
  );
  await expect(restore(options('x', { directory: world.directory }))).rejects.toThrow(/is not a backup directory/);
});

describe('damage', () => {
  test('is named by file and range, and stops a restore that is not forced', async () => {
    const full = [...world.contents.keys()][0]!;
    const file = world.damage(full, 300_000);
    const length = Math.min(CHECKSUM_RANGE_BYTES, fs.statSync(file).size);
    const said = `"${file}", bytes 0 to ${length - 1}: its content changed`;
    const to = world.newPath();
    await expect(restore(options(to))).rejects.toMatchObject({
      code: 'EBADMSG',
      message: expect.stringContaining(said),
    });
    expect(fs.existsSync(to)).toBe(false);
    const forced = await restore(options(to, { acceptDamage: true }));
    expect(forced.damage).toHaveLength(1);
    expect(fs.statSync(to).size).toBe(DISK_BYTES);

    const report = await verify({ directory: world.repository, reactor: world.reactor, pool: world.pool });
    expect(report.sound).toBe(false);
    expect(report.damage).toEqual([expect.objectContaining({ disk: 'vda', point: full, file, offset: 0, length })]);
    expect(report.points.map(({ restorable }) => restorable)).toEqual([false, false]);
  });

  test('that keeps a file from being checked, or read to its end, does not keep its data from a restore that is forced', async () => {
    const sums = world.files().find((name) => name.startsWith(point) && name.endsWith('.sums'))!;
    fs.unlinkSync(path.join(world.diskPath, sums));
    const to = world.newPath();
    await expect(restore(options(to))).rejects.toMatchObject({ code: 'EBADMSG' });
    await restore(options(to, { acceptDamage: true }));
    expectContent(to);
    const full = [...world.contents.keys()][0]!;
    const file = path.join(
      world.diskPath,
      world.files().find((name) => name === `${full}.qcow2`)!,
    );
    fs.truncateSync(file, fs.statSync(file).size - 1);
    const { damage } = await restore(options(to, { acceptDamage: true, overwrite: true }));
    expect(damage.map(({ problem }) => problem)).toEqual([
      expect.stringContaining('missing'),
      expect.stringContaining('bytes instead of'),
      expect.stringContaining('checksum mismatch'),
    ]);
    expectContent(to);
  });

  test('of an increment leaves the full restorable', async () => {
    world.damage(point, 70_000);
    const report = await verify({ directory: world.repository, disk: 'vda', reactor: world.reactor, pool: world.pool });
    expect(report.points.map(({ restorable }) => restorable)).toEqual([true, false]);
  });

  test.each(['.qcow2', '.sums'])('a missing %s file is found', async (suffix) => {
    const file = world.files().find((name) => name.startsWith(point) && name.endsWith(suffix))!;
    fs.unlinkSync(path.join(world.diskPath, file));
    const report = await verify({ directory: world.repository, reactor: world.reactor, pool: world.pool });
    expect(report.damage).toEqual([
      expect.objectContaining({
        point,
        file: path.join(world.diskPath, file),
        problem: expect.stringContaining('missing'),
      }),
    ]);
  });

  test('of the manifest is reported', async () => {
    const manifest = path.join(world.diskPath, 'manifest.json');
    fs.writeFileSync(manifest, fs.readFileSync(manifest, 'utf8').replace('"changeNumber": 2', '"changeNumber": 1'));
    const report = await verify({ directory: world.repository, reactor: world.reactor, pool: world.pool });
    expect(listPoints(world.repository)).toEqual([
      { disk: 'vda', points: [], problem: expect.stringContaining('checksum') },
    ]);
    expect(report).toMatchObject({
      sound: false,
      damage: [{ file: manifest, problem: expect.stringContaining('checksum') }],
    });
  });
});
