/** /dev/ublkbN of a daemon: file systems on it while snapshots are taken and mounted, and daemons that die under them;
 *  partitions, block sizes and a new size. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MIB } from '../../../src/util/units.ts';
import { Machine, sh } from '../machine.ts';

interface Disk {
  readonly kernelDevice: { readonly path: string };
}

interface Snapshot {
  readonly id: string;
  readonly images: ReadonlyArray<{ readonly kernelDevice: { readonly path: string } | null }>;
}

let machine: Machine;

/** A request to the daemon, past the command line. Rejects with the message of a failure. */
async function api<T>(method: string, place: string, body?: object): Promise<T> {
  const socket = path.join(machine.daemon.state, 'api.sock');
  const data = body === undefined ? [] : ['-H', 'content-type: application/json', '-d', JSON.stringify(body)];
  const said = await sh('curl', '-sS', '--unix-socket', socket, '-X', method, ...data, `http://localhost/v1/${place}`);
  const answer = (said === '' ? {} : JSON.parse(said)) as { error?: { message: string } };
  if (answer.error !== undefined) throw new Error(answer.error.message);
  return answer as T;
}

/** Attaches a block device as a disk; its kernel device. */
async function attach(device: string, name: string): Promise<string> {
  return (await api<Disk>('POST', 'disks', { path: device, name })).kernelDevice.path;
}

// One daemon for all: to start one takes most of the time here.
beforeAll(async () => {
  await sh('modprobe', 'ublk_drv');
  machine = await Machine.start();
});
afterAll(() => machine.dispose());

/** Writes a file with direct I/O and verifies every block of it, many requests at once. */
function fio(place: string, name: string, size: string): Promise<string> {
  const job = [`--name=${name}`, `--directory=${place}`, `--size=${size}`, '--rw=randwrite', '--bsrange=4k-64k'];
  const depth = ['--direct=1', '--ioengine=libaio', '--iodepth=160'];
  return sh('fio', ...job, ...depth, '--verify=crc32c', '--do_verify=1', '--verify_fatal=1', '--minimal');
}

const kinds = [
  { kind: 'ext4', disk: '/dev/ram0', mkfs: ['mkfs.ext4', '-q', '-b', '1024'], asImage: [], fsck: ['fsck.ext4', '-fn'] },
  { kind: 'xfs', disk: '/dev/ram1', mkfs: ['mkfs.xfs', '-q'], asImage: ['-o', 'nouuid'], fsck: ['xfs_repair', '-n'] },
];

for (const { kind, disk, mkfs, asImage, fsck } of kinds) {
  test(`${kind} on it goes on while snapshots are taken, mounted and written; in use it stays`, async () => {
    const device = await attach(disk, kind);
    expect(device).toMatch(/^\/dev\/ublkb\d+$/);
    await sh(mkfs[0]!, ...mkfs.slice(1), device);
    const place = await machine.mount(device);
    const kept = path.join(place, 'kept');
    fs.writeFileSync(kept, Buffer.alloc(MIB, 5), { flush: true });
    const writing = fio(place, 'x', '8m');
    const { id, images } = await api<Snapshot>('POST', 'snapshots', { disks: [kind] });
    fs.writeFileSync(kept, Buffer.alloc(MIB, 6), { flush: true });
    const image = await machine.mount(images[0]!.kernelDevice!.path, ...asImage);
    expect(fs.readFileSync(path.join(image, 'kept')).equals(Buffer.alloc(MIB, 5))).toBe(true);
    fs.writeFileSync(path.join(image, 'own'), Buffer.alloc(MIB, 7), { flush: true });
    await writing;
    await machine.umount(image);
    await api('DELETE', `snapshots/${id}`);
    await expect(api('DELETE', `disks/${kind}`)).rejects.toThrow(new RegExp(`in use: it is mounted at ${place}`));
    expect(fs.existsSync(path.join(place, 'own'))).toBe(false);
    expect(fs.readFileSync(kept).equals(Buffer.alloc(MIB, 6))).toBe(true);
    await machine.umount(place);
    await api('DELETE', `disks/${kind}`);
    expect(fs.existsSync(device)).toBe(false);
    await sh(fsck[0]!, ...fsck.slice(1), disk);
  });
}

test('daemons that are killed, or end in order, come back to a mounted file system under load', async () => {
  const device = await attach('/dev/ram2', 'data');
  await sh('mkfs.ext4', '-q', device);
  const place = await machine.mount(device);
  const { images } = await api<Snapshot>('POST', 'snapshots', { disks: ['data'] });
  const image = images[0]!.kernelDevice!.path;
  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    const writing = fio(place, signal, '24m');
    await expect.poll(() => inFlight(device), { interval: 5 }).toBeGreaterThan(32);
    await machine.daemon.stop(signal);
    const meanwhile = fs.promises.writeFile(path.join(place, 'meanwhile'), Buffer.alloc(MIB, 2), { flush: true });
    await machine.daemon.start();
    await Promise.all([meanwhile, writing]);
  }
  expect(fs.existsSync(image)).toBe(false);
  expect((await api<{ disks: Disk[] }>('GET', 'disks')).disks).toMatchObject([
    { kernelDevice: { path: device, via: 'ublk' } },
  ]);
  await machine.umount(place);
  await api('DELETE', 'disks/data');
  await sh('fsck.ext4', '-fn', '/dev/ram2');
});

test('has the partitions and block sizes of its disk, and its size as far as the kernel goes', async () => {
  const [file, size] = [machine.daemon.path('parts.img'), 64 * MIB];
  fs.writeFileSync(file, '');
  fs.truncateSync(file, size);
  await sh('modprobe', 'loop');
  const loop = (await sh('losetup', '--find', '--show', '--sector-size', '4096', file)).trim();
  const device = await attach(loop, 'parts');
  const attribute = (name: string): string =>
    fs.readFileSync(`/sys/block/${path.basename(device)}/${name}`, 'utf8').trim();
  expect([attribute('queue/logical_block_size'), attribute('queue/physical_block_size')]).toEqual(['4096', '4096']);
  await sh('sh', '-c', `printf 'label: gpt\nsize=16M\nsize=16M\n' | sfdisk --quiet ${device}`);
  await expect.poll(() => fs.existsSync(`${device}p2`)).toBe(true);
  fs.truncateSync(file, 2 * size);
  await sh('losetup', '--set-capacity', loop);
  const resized = api('POST', 'disks/parts/resize');
  const [major = 0, minor = 0] = os.release().split('.').map(Number);
  if (major > 6 || minor >= 16) await resized;
  else await expect(resized).rejects.toThrow(`want 6.16 or newer), so ${device} keeps its size`);
  expect(Number(attribute('size')) * 512).toBe(major > 6 || minor >= 16 ? 2 * size : size);
  await api('DELETE', 'disks/parts');
  await sh('losetup', '--detach', loop);
});

/** Requests that the kernel has given out. */
function inFlight(device: string): number {
  const counts = fs
    .readFileSync(`/sys/block/${path.basename(device)}/inflight`, 'utf8')
    .trim()
    .split(/\s+/);
  return counts.reduce((sum, count) => sum + Number(count), 0);
}
