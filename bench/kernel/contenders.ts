/** Block devices under measurement, each over a RAM disk of its own, and what each keeps a frozen view with. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import { promisify } from 'node:util';
import type { Daemon } from '../blksnap-server.ts';

const run = promisify(execFile);
const MIB = 2 ** 20;
const SECTOR = 512;

/** QEMU, most likely without KVM: fewer contenders and workloads, that it comes to an end. */
export const EMULATED = process.env['BLKSNAP_TEST_KERNEL'] === 'qemu';
/** What is measured of every RAM disk; what follows it is for warming up. */
export const MEASURED_BYTES = (EMULATED ? 64 : 128) * MIB;
export const WARM_UP_BYTES = 16 * MIB;
/** With room for the metadata of dm-snapshot, when the disk is its storage. */
const RAM_DISK_BYTES = MEASURED_BYTES + 2 * WARM_UP_BYTES;

export interface Contender {
  readonly name: string;
  readonly device: string;
  /** Takes a snapshot; its image. Undefined for who cannot. */
  readonly hold?: () => Promise<string>;
  readonly release?: () => Promise<void>;
  readonly end: () => Promise<void>;
}

/** Overwrites all that is measured. */
export async function overwriteAll(device: string): Promise<void> {
  await run('dd', [
    'if=/dev/zero',
    `of=${device}`,
    'bs=1M',
    `count=${MEASURED_BYTES / MIB}`,
    'oflag=direct',
    'conv=notrunc',
  ]);
}

/** Whether the kernel has ublk. */
export async function loadUblk(): Promise<boolean> {
  await run('modprobe', ['ublk_drv']).catch(() => {});
  return fs.existsSync('/dev/ublk-control');
}

/** Makes RAM disks, full of what is no zeros. */
export async function makeRamDisks(count: number): Promise<void> {
  await run('modprobe', ['brd', `rd_nr=${count}`, `rd_size=${RAM_DISK_BYTES / 1024}`]);
  const fill = (index: number): string => `tr '\\0' '\\252' </dev/zero | dd of=/dev/ram${index} bs=1M iflag=fullblock`;
  for (let i = 0; i < count; i++)
    await run('sh', ['-c', `${fill(i)} 2>/dev/null || true; blockdev --flushbufs /dev/ram${i}`]);
}

export function rawDevice(disk: string): Contender {
  return { name: 'the RAM disk', device: disk, end: async () => {} };
}

async function dmsetup(...words: string[]): Promise<void> {
  await run('/sbin/dmsetup', words);
  await run('/sbin/dmsetup', ['mknodes']);
}

/** `snapshot-origin` over a disk, and while a snapshot is held a `snapshot` with storage on another RAM disk. */
export async function dmSnapshot(disk: string, storage: string, chunkBytes: number): Promise<Contender> {
  const origin = `bench-origin-${chunkBytes}`;
  const snapshot = `bench-snapshot-${chunkBytes}`;
  const sectors = (MEASURED_BYTES + WARM_UP_BYTES) / SECTOR;
  await dmsetup('create', origin, '--table', `0 ${sectors} snapshot-origin ${disk}`);
  return {
    name: `dm-snapshot, ${chunkBytes / 1024} KiB`,
    device: `/dev/mapper/${origin}`,
    hold: async () => {
      // An old header would bring back an old snapshot.
      await run('dd', ['if=/dev/zero', `of=${storage}`, 'bs=64k', 'count=1', 'oflag=direct']);
      const table = `0 ${sectors} snapshot ${disk} ${storage} N ${chunkBytes / SECTOR}`;
      await dmsetup('suspend', origin);
      await dmsetup('create', snapshot, '--table', table);
      await dmsetup('resume', origin);
      return `/dev/mapper/${snapshot}`;
    },
    release: () => dmsetup('remove', '--retry', snapshot),
    end: () => dmsetup('remove', '--retry', origin),
  };
}

/** A disk of the daemon as a kernel device. What a snapshot saves lies on tmpfs. */
export async function ours({ client, dir }: Daemon, disk: string, via: 'nbd' | 'ublk'): Promise<Contender> {
  const { kernelDevice } = await client.attach({ path: disk, name: via, kernelDevice: true, via });
  const storage = `${dir}/storage-${via}`;
  fs.mkdirSync(storage);
  let held = '';
  return {
    name: via === 'nbd' ? 'blksnap, /dev/nbdN' : 'blksnap, /dev/ublkbN',
    device: kernelDevice!.path!,
    hold: async () => {
      const { id, images } = await client.createSnapshot({ disks: [via], storage });
      held = id;
      return images[0]!.kernelDevice!.path!;
    },
    release: () => client.destroySnapshot(held),
    end: () => client.detach(via),
  };
}
