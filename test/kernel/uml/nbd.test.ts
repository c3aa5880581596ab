/** /dev/nbdN: what it looks like, how it goes, and that it outlives its daemon. */

import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { MIB } from '../../../src/util/units.ts';
import { Machine, RAM_DISK_BYTES, sh } from '../machine.ts';

interface Disk {
  readonly name: string;
  readonly kernelDevice: { readonly path: string | null; readonly via: string } | null;
}

interface Snapshot {
  readonly id: string;
  readonly images: ReadonlyArray<{ readonly kernelDevice: { readonly path: string } | null }>;
}

let machine: Machine;

beforeEach(async () => {
  machine = await Machine.start();
});
afterEach(() => machine.dispose());

function queue(device: string, name: string): string {
  return fs.readFileSync(`/sys/block/${path.basename(device)}/${name}`, 'utf8').trim();
}

test('a block device gets one by default, of its own size and block sizes; a file when asked', async () => {
  const device = await machine.attach('/dev/ram0', '--name', 'data');
  expect(device).toMatch(/^\/dev\/nbd\d+$/);
  expect(Number(queue(device, 'size')) * 512).toBe(RAM_DISK_BYTES);
  for (const name of ['queue/logical_block_size', 'ro']) expect(queue(device, name)).toBe(queue('/dev/ram0', name));
  const file = machine.daemon.path('file.img');
  fs.writeFileSync(file, '');
  fs.truncateSync(file, 8 * MIB);
  expect(await machine.daemon.json<Disk>('attach', file)).toMatchObject({ kernelDevice: null });
  await machine.daemon.cli('detach', 'file');
  const shown = await machine.attach(file, '--dev', '--via', 'nbd', '--read-only');
  expect(queue(shown, 'ro')).toBe('1');
  const { disks } = await machine.daemon.json<{ disks: Disk[] }>('list');
  expect(disks.map(({ kernelDevice }) => kernelDevice)).toEqual([
    { path: device, via: 'nbd', failure: null },
    { path: shown, via: 'nbd', failure: null },
  ]);
  expect(await machine.daemon.json('status')).toMatchObject({ kernelDevices: 2 });
  await machine.daemon.cli('detach', 'data');
  expect(queue(device, 'size')).toBe('0');
});

test('none when it is not wanted', async () => {
  expect(await machine.daemon.json<Disk>('attach', '/dev/ram0', '--no-dev')).toMatchObject({ kernelDevice: null });
});

test('what is in use stays: detach and destroy say who has it', async () => {
  const device = await machine.attach('/dev/ram0', '--name', 'data');
  await sh('mkfs.ext4', '-q', device);
  const place = await machine.mount(device);
  await expect(machine.daemon.cli('detach', 'data')).rejects.toThrow(new RegExp(`in use: it is mounted at ${place}`));
  const { id, images } = await machine.daemon.json<Snapshot>('snapshot', 'create', 'data');
  const image = await machine.mount(images[0]!.kernelDevice!.path);
  await expect(machine.daemon.cli('snapshot', 'destroy', id)).rejects.toThrow(/in use: it is mounted/);
  await machine.umount(image);
  await machine.daemon.cli('snapshot', 'destroy', id);
  fs.writeFileSync(path.join(place, 'after'), 'still writable');
  await machine.umount(place);
  await machine.daemon.cli('detach', 'data');
  await sh('fsck.ext4', '-fn', '/dev/ram0');
});

test('partitions show, and a grown disk grows', async () => {
  const file = machine.daemon.path('parts.img');
  fs.writeFileSync(file, '');
  fs.truncateSync(file, 64 * MIB);
  const device = await machine.attach(file, '--dev', '--name', 'parts');
  const script = machine.daemon.path('script');
  fs.writeFileSync(script, 'label: gpt\nsize=16M\nsize=16M\n');
  await sh('sh', '-c', `sfdisk --quiet ${device} <${script}`);
  await machine.daemon.cli('rescan', 'parts');
  expect(fs.existsSync(`${device}p2`)).toBe(true);
  const second = await machine.daemon.json<{ disks: Disk[] }>('list');
  expect(second.disks.map(({ name, kernelDevice }) => [name, kernelDevice?.path])).toEqual([
    ['parts', device],
    ['parts/1', `${device}p1`],
    ['parts/2', `${device}p2`],
  ]);
  fs.truncateSync(file, 128 * MIB);
  await machine.daemon.cli('resize', 'parts');
  expect(Number(queue(device, 'size')) * 512).toBe(128 * MIB);
  const end = Buffer.alloc(4096, 7);
  fs.writeFileSync(machine.daemon.path('end'), end);
  const from = machine.daemon.path('end');
  await sh('dd', `if=${from}`, `of=${device}`, 'bs=4096', 'seek=32767', 'oflag=direct', 'status=none');
  expect(fs.readFileSync(file).subarray(-4096).equals(end)).toBe(true);
});

test('a killed daemon comes back to a mounted file system: nothing fails, nothing is lost', async () => {
  const device = await machine.attach('/dev/ram0', '--name', 'data');
  await sh('mkfs.ext4', '-q', device);
  const place = await machine.mount(device);
  const { images } = await machine.daemon.json<Snapshot>('snapshot', 'create', 'data');
  const image = images[0]!.kernelDevice!.path;
  fs.writeFileSync(path.join(place, 'before'), Buffer.alloc(MIB, 1));
  const writing = sh('dd', 'if=/dev/zero', `of=${place}/during`, 'bs=1M', 'count=48', 'oflag=direct', 'status=none');
  await machine.daemon.stop('SIGKILL');
  const during = fs.promises.writeFile(path.join(place, 'while-gone'), Buffer.alloc(MIB, 2), { flush: true });
  await machine.daemon.start();
  await during;
  await writing;
  expect(queue(image, 'size')).toBe('0');
  expect(await machine.daemon.json('list')).toMatchObject({ disks: [{ kernelDevice: { path: device } }] });
  await machine.umount(place);
  await machine.daemon.cli('detach', 'data');
  await sh('fsck.ext4', '-fn', '/dev/ram0');
  const again = await machine.mount('/dev/ram0');
  expect(fs.readFileSync(path.join(again, 'while-gone')).equals(Buffer.alloc(MIB, 2))).toBe(true);
  expect(fs.statSync(path.join(again, 'during')).size).toBe(48 * MIB);
  await machine.umount(again);
});

test('a daemon that ends in order takes unused devices down, and makes them again', async () => {
  const device = await machine.attach('/dev/ram0', '--name', 'data');
  expect(await machine.daemon.stop()).toBe(0);
  expect(queue(device, 'size')).toBe('0');
  await machine.daemon.start();
  expect(await machine.daemon.json('list')).toMatchObject({ disks: [{ kernelDevice: { path: device } }] });
  expect(Number(queue(device, 'size')) * 512).toBe(RAM_DISK_BYTES);
});
