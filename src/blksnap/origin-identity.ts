/** What an origin looked like when it was last in our hands, to tell whether somebody else wrote
 *  to it meanwhile. For a file: its inode, size and modification time. For a kernel device: its
 *  number and the kernel's count of sectors written. Does not tell *what* was written. */

import fs from 'node:fs';
import os from 'node:os';

export interface OriginIdentity {
  readonly kind: 'file' | 'device';
  /** A number that another file or device of the same path would not have. */
  readonly id: bigint;
  /** File: modification time, ns. Device: sectors written since boot. */
  readonly version: bigint;
}

export function originIdentity(path: string): OriginIdentity {
  const stat = fs.statSync(path, { bigint: true });
  if (!stat.isBlockDevice()) return { kind: 'file', id: stat.ino, version: stat.mtimeNs };
  return { kind: 'device', id: stat.rdev, version: sectorsWritten(Number(stat.rdev)) };
}

/** Field 7 of /sys/dev/block/M:m/stat (Documentation/block/stat.rst). */
function sectorsWritten(rdev: number): bigint {
  const major = ((rdev >>> 8) & 0xfff) | (Math.floor(rdev / 2 ** 32) & ~0xfff);
  const minor = (rdev & 0xff) | ((rdev >>> 12) & 0xfff00);
  const fields = fs.readFileSync(`/sys/dev/block/${major}:${minor}/stat`, 'utf8').trim().split(/\s+/);
  return BigInt(fields[6] ?? '0');
}

/** Differs after every boot of the machine. */
export function bootId(): string {
  if (os.platform() === 'linux') return fs.readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  return String(Math.round(Date.now() / 1000 - os.uptime()));
}
