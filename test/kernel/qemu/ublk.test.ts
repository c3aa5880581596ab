/** /dev/ublkbN of a daemon: file systems on it while snapshots are taken and mounted, and daemons that die under them. */

import fs from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { MIB } from '../../../src/util/units.ts';
import { Machine, sh } from '../machine.ts';

interface Snapshot {
  readonly id: string;
  readonly images: ReadonlyArray<{ readonly kernelDevice: { readonly path: string } | null }>;
}

let machine: Machine;

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
  { kind: 'ext4', mkfs: ['mkfs.ext4', '-q', '-b', '1024'], asImage: [], fsck: ['fsck.ext4', '-fn'] },
  { kind: 'xfs', mkfs: ['mkfs.xfs', '-q'], asImage: ['-o', 'nouuid'], fsck: ['xfs_repair', '-n'] },
];

for (const { kind, mkfs, asImage, fsck } of kinds) {
  test(`${kind} on it goes on while snapshots are taken, mounted and written; in use it stays`, async () => {
    const device = await machine.attach('/dev/ram0', '--name', 'data');
    expect(device).toMatch(/^\/dev\/ublkb\d+$/);
    await sh(mkfs[0]!, ...mkfs.slice(1), device);
    const place = await machine.mount(device);
    const kept = path.join(place, 'kept');
    fs.writeFileSync(kept, Buffer.alloc(MIB, 5), { flush: true });
    const writing = fio(place, 'x', '8m');
    const { id, images } = await machine.daemon.json<Snapshot>('snapshot', 'create', 'data');
    fs.writeFileSync(kept, Buffer.alloc(MIB, 6), { flush: true });
    const image = await machine.mount(images[0]!.kernelDevice!.path, ...asImage);
    expect(fs.readFileSync(path.join(image, 'kept')).equals(Buffer.alloc(MIB, 5))).toBe(true);
    fs.writeFileSync(path.join(image, 'own'), Buffer.alloc(MIB, 7), { flush: true });
    await writing;
    await machine.umount(image);
    await machine.daemon.cli('snapshot', 'destroy', id);
    await expect(machine.daemon.cli('detach', 'data')).rejects.toThrow(new RegExp(`in use: it is mounted at ${place}`));
    expect(fs.existsSync(path.join(place, 'own'))).toBe(false);
    expect(fs.readFileSync(kept).equals(Buffer.alloc(MIB, 6))).toBe(true);
    await machine.umount(place);
    await machine.daemon.cli('detach', 'data');
    expect(fs.existsSync(device)).toBe(false);
    await sh(fsck[0]!, ...fsck.slice(1), '/dev/ram0');
  });
}

test('daemons that are killed, or end in order, come back to a mounted file system under load', async () => {
  const device = await machine.attach('/dev/ram0', '--name', 'data');
  await sh('mkfs.ext4', '-q', device);
  const place = await machine.mount(device);
  const { images } = await machine.daemon.json<Snapshot>('snapshot', 'create', 'data');
  const image = images[0]!.kernelDevice!.path;
  for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
    const writing = fio(place, signal, '24m');
    await expect.poll(() => inFlight(device), { timeout: 60_000, interval: 5 }).toBeGreaterThan(32);
    await machine.daemon.stop(signal);
    const meanwhile = fs.promises.writeFile(path.join(place, 'meanwhile'), Buffer.alloc(MIB, 2), { flush: true });
    await machine.daemon.start();
    await Promise.all([meanwhile, writing]);
  }
  expect(fs.existsSync(image)).toBe(false);
  expect(await machine.daemon.json('list')).toMatchObject({ disks: [{ kernelDevice: { path: device, via: 'ublk' } }] });
  await machine.umount(place);
  await machine.daemon.cli('detach', 'data');
  await sh('fsck.ext4', '-fn', '/dev/ram0');
});

/** Requests that the kernel has given out. */
function inFlight(device: string): number {
  const counts = fs
    .readFileSync(`/sys/block/${path.basename(device)}/inflight`, 'utf8')
    .trim()
    .split(/\s+/);
  return counts.reduce((sum, count) => sum + Number(count), 0);
}
