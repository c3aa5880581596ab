/** Mapped devices as disks of a daemon: served, tracked, snapshotted, replaced under use, and back after a restart. */

import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ApiWorld } from '../../test/api-world.ts';
import { requirePrograms, requireRoot } from '../../test/requirements.ts';
import { ERRNO } from '../util/errors.ts';
import { MIB } from '../util/units.ts';
import type { Client } from './client.ts';

let world: ApiWorld;
let client: Client;
const storage = ':memory:';

beforeEach(async () => {
  world = await ApiWorld.open();
  client = world.client;
});
afterEach(() => world.close());

const attach = async (name: string, size = MIB): Promise<string> =>
  (await client.attach({ path: world.file(`${name}.img`, size), name })).uri;

describe('a mapped device', () => {
  it('is a disk like any other', async () => {
    await attach('a');
    const file = world.file('plain.img', MIB);
    const { uri, ...disk } = await client.createMapped({
      name: 'm',
      table: `0 1024 linear a 8\n1024 2048 linear ${file} 0`,
    });
    expect(disk).toMatchObject({ name: 'm', kind: 'mapped', path: 'dm:m', size: 3072 * 512, filters: ['blksnap'] });
    expect(await world.fill(uri, 0, 1)).toBe(0);
    expect(await world.fill(uri, 1024 * 512, 2)).toBe(0);
    expect(fs.readFileSync(path.join(world.directory, 'a.img'))[8 * 512]).toBe(1);
    expect(fs.readFileSync(file)[0]).toBe(2);
    expect([...(await client.cbtMap('m'))].slice(0, 9)).toEqual([1, 0, 0, 0, 0, 0, 0, 0, 1]);
    expect([...(await client.cbtMap('a'))][0], 'what it lies on is tracked too').toBe(1);

    const snapshot = await client.createSnapshot({ disks: ['m', 'a'], storage });
    expect(await world.fill(uri, 0, 3)).toBe(0);
    const values = await Promise.all(snapshot.images.map((image, i) => world.valueAt(image.uri, i * 8 * 512)));
    expect(values).toEqual([1, 1]);
    await expect(client.removeMapped('m')).rejects.toMatchObject({ code: 'EBUSY' });
    await client.destroySnapshot(snapshot.id);
    await client.removeMapped('m');
    expect((await client.disks()).map(({ name }) => name)).toEqual(['a']);
  });

  it('has what it lies on for itself, and lets others read it', async () => {
    const uri = await attach('a');
    await client.createMapped({ name: 'm', table: '0 1024 linear a 0' });
    expect(await world.fill(uri, 0, 1), 'the disk is written through the device alone').not.toBe(0);
    expect(await world.valueAt(uri, 0)).toBe(0);
    for (const [table, words] of [
      ['0 8 linear a 1023', /sectors 1023 to 1030 of "a": used by mapped device "m"/],
      ['0 8 linear a 1024\n8 8 linear a 1030', /used by another line/],
      ['0 16 striped 2 8 a 1024 a 1028', /used by the same line/],
      [`0 8 linear ${world.directory}/a.img 1024`, /served as disk "a"/],
      ['0 8 linear nobody 0', /No disk "nobody" is served/],
      ['0 8 linear a/1 0', /No partition "a\/1"/],
      ['0 8 linear relative.img 0', /relative.img/],
    ] as const) {
      await expect(client.createMapped({ name: 'other', table })).rejects.toThrow(words);
    }
    await client.createMapped({ name: 'other', table: '0 8 delay a 1024 1 a 1024 2' });
    await expect(client.detach('a')).rejects.toMatchObject({
      code: 'EBUSY',
      message: /used by mapped device "m", mapped device "other"/,
    });
    await client.removeMapped('other');
    await client.detach('m');
    expect(await world.fill(uri, 0, 1)).toBe(0);
  });

  it('has no storage on what it lies on: a file, a disk, a file behind a redirected range', async (context) => {
    requireRoot(context);
    requirePrograms(context, 'losetup', 'mkfs.ext4');
    const shell = (program: string, ...words: string[]): string => execFileSync(program, words, { encoding: 'utf8' });
    const file = world.file('backing.img', 16 * MIB);
    shell('mkfs.ext4', '-q', file);
    await attach('a');
    await client.createMapped({ name: 'm', table: `0 2048 linear ${file} 0` });
    await client.createMapped({ name: 'on-m', table: '0 1024 linear m 0' });
    await client.remap({ disk: 'a', offset: 0, length: 4096, to: 'on-m', at: 0, copy: false });
    // A filesystem on a loop device over the file.
    const directory = path.join(world.directory, 'mounted');
    fs.mkdirSync(directory);
    const device = shell('losetup', '--find', '--show', file).trim();
    try {
      shell('mount', device, directory);
      for (const disk of ['m', 'on-m', 'a']) {
        const refused = client.createSnapshot({ disks: [disk], storage: directory });
        await expect(refused).rejects.toThrow(new RegExp(`lies on disk "${disk}"`));
      }
    } finally {
      spawnSync('umount', [directory]);
      shell('losetup', '--detach', device);
    }
  });

  it('cannot lie on itself', async () => {
    await attach('a');
    await client.createMapped({ name: 'low', table: '0 64 linear a 0' });
    await client.createMapped({ name: 'high', table: '0 64 linear low 0' });
    for (const table of ['0 64 linear low 0', '0 64 linear high 0']) {
      await expect(client.loadMapped('low', { table })).rejects.toThrow(/lies on "low" itself/);
    }
    await expect(client.remap({ disk: 'a', offset: 512 * 1024, length: 4096, to: 'low' })).rejects.toThrow(
      /lies on "a" itself/,
    );
    await expect(client.removeMapped('low')).rejects.toThrow(/used by mapped device "high"/);
  });

  it('gets another table: with the same data under a snapshot, with other data as a new history', async () => {
    const [a, b] = ['a', 'b'].map((name) => world.file(`${name}.img`, MIB));
    const { uri, cbt } = await client.createMapped({ name: 'm', table: `0 2048 linear ${a} 0` });
    await world.fill(uri, 0, 1);
    const snapshot = await client.createSnapshot({ disks: ['m'], storage });
    const image = snapshot.images[0]!.uri;
    await client.loadMapped('m', { table: `0 2048 mirror core 1 64 2 ${a} 0 ${b} 0`, sameData: true });
    await client.resumeMapped('m');
    await expect.poll(async () => (await client.mapped()).devices[0]!.status[0]).toMatch(/ 32\/32 1 AA 1 core$/);
    await client.loadMapped('m', { table: `0 2048 linear ${b} 0`, sameData: true });
    await client.suspendMapped('m');
    const write = world.fill(uri, 0, 2);
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect((await client.mapped()).devices[0]).toMatchObject({ suspended: true, inFlight: 0 });
    await client.resumeMapped('m');
    expect(await write).toBe(0);
    expect([await world.valueAt(uri, 0), await world.valueAt(image, 0)]).toEqual([2, 1]);
    expect([fs.readFileSync(a!)[0], fs.readFileSync(b!)[0]]).toEqual([1, 2]);
    expect((await client.cbt('m')).generationId).toBe(cbt!.generationId);

    await client.loadMapped('m', { table: `0 2048 zero` });
    await expect(client.resumeMapped('m')).rejects.toMatchObject({ code: 'EBUSY', message: /snapshot .* is held/ });
    await client.destroySnapshot(snapshot.id);
    await client.resumeMapped('m');
    expect(await world.valueAt(uri, 0)).toBe(0);
    expect(await client.cbt('m')).toMatchObject({
      changeNumber: 1,
      reason: expect.stringMatching(/table .* was replaced/) as string,
    });
  });

  it('comes back with its live table, also when it lies on others', async () => {
    await attach('a');
    await client.createMapped({ name: 'low', table: '0 64 linear a 0' });
    const { uri } = await client.createMapped({ name: 'high', table: '0 64 zero' });
    await client.loadMapped('high', { table: '0 64 linear low 0' });
    await client.resumeMapped('high');
    await client.loadMapped('high', { table: '0 64 error' });
    await world.fill(uri, 0, 7);
    const histories = async (): Promise<string[]> =>
      (await client.disks()).map(({ name, cbt }) => `${name} ${cbt!.generationId}`);
    const before = await histories();
    await world.stop();
    await world.start();
    const after = await histories();
    expect(after.filter((history) => before.includes(history))).toEqual([before.find((one) => one.startsWith('a '))]);
    expect((await client.cbt('high')).reason).toBe('the map is kept in memory only');
    const [high] = (await client.mapped()).devices;
    expect(high).toMatchObject({ name: 'high', table: ['0 64 linear low 0'], inactiveTable: [], suspended: false });
    expect(await world.valueAt(uri, 0)).toBe(7);
  });

  it('that cannot be made again is reported, and not forgotten', async () => {
    const file = world.file('b.img', MIB);
    await client.createMapped({ name: 'm', table: `0 64 linear ${file} 0` });
    await world.stop();
    fs.renameSync(file, `${file}.away`);
    await world.start();
    expect(await client.disk('m')).toMatchObject({ state: 'failed', kind: 'mapped', failure: { code: 'ENOENT' } });
    await world.stop();
    fs.renameSync(`${file}.away`, file);
    await world.start();
    expect(await client.disk('m')).toMatchObject({ state: 'attached', failure: null });
    await client.removeMapped('m');
    expect(JSON.parse(fs.readFileSync(path.join(world.directory, 'mapped.json'), 'utf8'))).toEqual({
      version: 1,
      devices: [],
      remaps: [],
    });
  });

  it('that is suspended does not keep the daemon from ending', async () => {
    const { uri } = await client.createMapped({ name: 'm', table: '0 64 zero' });
    await client.suspendMapped('m');
    await expect(client.removeMapped('m')).rejects.toThrow(/resume it first/);
    const write = world.fill(uri, 0, 1).catch(() => -1);
    await new Promise((resolve) => setTimeout(resolve, 30));
    await world.stop();
    expect(await write).not.toBe(0);
    await world.start();
  });
});

describe('faults below a disk', () => {
  it('of reads fail the copy and with it the image, never the write', async () => {
    const file = world.file('b.img', MIB);
    const { uri } = await client.createMapped({ name: 'm', table: `0 2048 dust ${file} 0 4096` });
    await client.messageMapped('m', { text: 'addbadblock 1' });
    const snapshot = await client.createSnapshot({ disks: ['m'], storage });
    await client.messageMapped('m', { text: 'enable' });
    expect(await world.valueAt(uri, 4096)).toBe(-ERRNO.EIO);
    expect(await world.fill(uri, 4096, 9)).toBe(0);
    expect(await world.valueAt(uri, 4096), 'the write has mended the block').toBe(9);
    expect((await client.snapshot(snapshot.id)).images[0]!.error).toBe('EIO');
    expect((await client.events(snapshot.id)).map(({ code }) => code)).toEqual(['corrupted']);
    expect(await world.valueAt(snapshot.images[0]!.uri, 0)).toBe(-ERRNO.EIO);
    await client.destroySnapshot(snapshot.id);
  });

  it("of writes are the client's to hear, and what was to be written stays marked", async () => {
    const { uri } = await client.createMapped({ name: 'm', table: '0 1024 zero\n1024 1024 error' });
    expect(await world.fill(uri, 1024 * 512, 1)).toBe(ERRNO.EIO);
    expect([...(await client.cbtMap('m'))].slice(7, 10)).toEqual([0, 1, 0]);
  });

  it('that come and go below a held snapshot leave its image whole', async () => {
    const file = world.file('b.img', MIB);
    const well = `0 2048 linear ${file} 0`;
    const { uri } = await client.createMapped({ name: 'm', table: well });
    await world.fill(uri, 0, 1, MIB);
    const snapshot = await client.createSnapshot({ disks: ['m'], storage });
    const swap = async (table: string): Promise<void> => {
      await client.loadMapped('m', { table, sameData: true });
      await client.resumeMapped('m');
    };
    await swap(`0 2048 flakey ${file} 0 0 1 1 error_writes`);
    expect(await world.fill(uri, 0, 2)).toBe(ERRNO.EIO);
    await swap(`0 2048 delay ${file} 0 5`);
    expect(await world.fill(uri, 8192, 3)).toBe(0);
    await swap(well);
    expect(await world.fill(uri, 0, 4)).toBe(0);
    expect(await world.valueAt(snapshot.images[0]!.uri, 0, MIB)).toBe(1);
    expect([await world.valueAt(uri, 0), await world.valueAt(uri, 8192)]).toEqual([4, 3]);
    await client.destroySnapshot(snapshot.id);
  });
});

describe('a redirected range', () => {
  const range = { disk: 'a', offset: 64 * 1024, length: 128 * 1024, to: 'm', at: 4096 };

  it('moves with its data, under a held snapshot, and back', async () => {
    const uri = await attach('a');
    const file = path.join(world.directory, 'a.img');
    const { uri: mapped } = await client.createMapped({
      name: 'm',
      table: `0 1024 linear ${world.file('b.img', MIB)} 0`,
    });
    await world.fill(uri, 0, 1, MIB);
    const snapshot = await client.createSnapshot({ disks: ['a'], storage });
    const image = snapshot.images[0]!.uri;
    await client.remap(range);
    expect((await client.mapped()).remaps).toEqual([range]);
    expect((await client.disk('a')).filters).toEqual(['blksnap', 'remap']);
    expect(await world.fill(uri, 60 * 1024, 2, 8192)).toBe(0);
    expect([await world.valueAt(uri, 60 * 1024, 8192), await world.valueAt(mapped, 4096)]).toEqual([2, 2]);
    expect(fs.readFileSync(file)[64 * 1024]).toBe(1);
    expect(await world.valueAt(image, 0, MIB)).toBe(1);
    expect(await world.fill(mapped, 0, 3), 'the device may still be written beside the range').not.toBe(0);
    await expect(client.remap({ ...range, at: 256 * 1024 })).rejects.toMatchObject({ code: 'EBUSY' });
    await expect(client.detach('a')).rejects.toMatchObject({ code: 'EBUSY' });
    await expect(client.detachFilter('a', 'remap')).rejects.toThrow();
    await client.unmap({ disk: 'a', offset: range.offset });
    expect(fs.readFileSync(file)[64 * 1024]).toBe(2);
    expect(await world.valueAt(image, 0, MIB)).toBe(1);
    expect((await client.disk('a')).filters).toEqual(['blksnap']);
    await client.destroySnapshot(snapshot.id);
  });

  it('that shows other data begins a new history, and is refused under a snapshot', async () => {
    await attach('a');
    await client.createMapped({ name: 'm', table: '0 1024 zero' });
    const snapshot = await client.createSnapshot({ disks: ['a'], storage });
    await expect(client.remap({ ...range, copy: false })).rejects.toMatchObject({ code: 'EBUSY' });
    await client.destroySnapshot(snapshot.id);
    const before = await client.cbt('a');
    await client.remap({ ...range, copy: false });
    expect((await client.cbt('a')).generationId).not.toBe(before.generationId);
    await client.unmap({ disk: 'a', offset: range.offset, copy: false });
  });

  it('is there after a restart, or its disk is not', async () => {
    const uri = await attach('a');
    const file = world.file('b.img', MIB);
    await client.createMapped({ name: 'm', table: `0 1024 linear ${file} 0` });
    await client.remap(range);
    await world.fill(uri, range.offset, 5);
    await world.stop();
    await world.start();
    expect(await world.valueAt(uri, range.offset)).toBe(5);
    await world.stop();
    fs.renameSync(file, `${file}.away`);
    await world.start();
    expect(await client.disk('a')).toMatchObject({ state: 'failed' });
    await expect(client.attach({ path: path.join(world.directory, 'a.img'), name: 'a' })).rejects.toThrow(
      /lies on mapped device "m"/,
    );
    await world.stop();
    fs.renameSync(`${file}.away`, file);
    await world.start();
    expect(await world.valueAt(uri, range.offset)).toBe(5);
  });
});
