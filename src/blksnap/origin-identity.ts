/** What an origin looked like when it was last in our hands, to tell whether somebody else wrote
 *  to it meanwhile. Does not tell *what* was written.
 *
 *  For a file: its inode, and the times of its last modification and of its last change; the first can be set
 *  back (cp -p, rsync, tar), the second cannot. For a kernel device: its number, the kernel's count of disks so
 *  far (another disk of the same number has another), and its count of sectors written and discarded.
 *
 *  The kernel need not count: it can be told not to (`queue/iostats`), and some drivers never do (brd), or do in spite of
 *  that (device-mapper before 6.12). So it is also told whether it should. */

import fs from 'node:fs';
import os from 'node:os';
import { formatDeviceNumber } from '../io/sysfs.ts';

export interface OriginIdentity {
  readonly kind: 'file' | 'device';
  /** A number that another file or device of the same path would not have. */
  readonly id: bigint;
  /** File: modification time, ns. Device: sectors written or discarded since boot. */
  readonly version: bigint;
  /** File: change time (ctime), ns. Device: its sequence number (diskseq), 0 where the kernel has none. */
  readonly change: bigint;
  /** Whether the version is bound to change with every write. */
  readonly counted: boolean;
}

export function originIdentity(path: string): OriginIdentity {
  const stat = fs.statSync(path, { bigint: true });
  if (!stat.isBlockDevice())
    return { kind: 'file', id: stat.ino, version: stat.mtimeNs, change: stat.ctimeNs, counted: true };
  const directory = sysfsDirectory(Number(stat.rdev));
  return {
    kind: 'device',
    id: stat.rdev,
    version: sectorsChanged(directory),
    change: diskSequence(directory),
    counted: ofDisk(directory, 'queue/iostats') === '1',
  };
}

/** Where the kernel tells of a block device, whatever its node is called. */
export function sysfsDirectory(rdev: number): string {
  return `/sys/dev/block/${formatDeviceNumber(rdev)}`;
}

/** Fields 7 and 14 of stat (Documentation/block/stat.rst); the second is there since Linux 4.19. */
function sectorsChanged(directory: string): bigint {
  const fields = fs.readFileSync(`${directory}/stat`, 'utf8').trim().split(/\s+/);
  return BigInt(fields[6] ?? '0') + BigInt(fields[13] ?? '0');
}

/** Linux 5.15 and newer. */
function diskSequence(directory: string): bigint {
  return BigInt(ofDisk(directory, 'diskseq') ?? '0');
}

/** An attribute that a partition has from its disk; null where the kernel has no such. */
function ofDisk(directory: string, name: string): string | null {
  for (const file of [`${directory}/${name}`, `${fs.realpathSync(directory)}/../${name}`]) {
    if (fs.existsSync(file)) return fs.readFileSync(file, 'utf8').trim();
  }
  return null;
}

let ofThisBoot: string | null = null;

/** Differs after every boot of the machine. */
export function bootId(): string {
  ofThisBoot ??= readBootId();
  return ofThisBoot;
}

function readBootId(): string {
  if (os.platform() === 'linux') return fs.readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  return String(Math.round(Date.now() / 1000 - os.uptime()));
}
