/** From the device that holds a file to the disk of the daemon that it is, or lies on: up through
 *  partitions and loop devices, as sysfs tells. */

import fs from 'node:fs';
import path from 'node:path';
import type { DiskView } from '../api/client.ts';
import { readAttribute } from '../io/sysfs.ts';
import { BlksnapError } from '../util/errors.ts';

const SECTOR = 512;

interface DeviceNumber {
  readonly major: number;
  readonly minor: number;
}

export interface Place {
  readonly disk: DiskView;
  /** Where the holder begins on the disk, bytes. */
  readonly offset: number;
}

/** `named`: the disk that the user says it is, which settles what only he can know: which disk an NBD
 *  client's device shows. Errors: EINVAL when the holder is not on that disk, or on none. */
export function diskOfHolder(holder: DeviceNumber, disks: readonly DiskView[], named: DiskView | null): Place {
  const candidates = named === null ? disks : [named];
  let offset = 0;
  let node = fs.realpathSync(`/sys/dev/block/${holder.major}:${holder.minor}`);
  const first = path.basename(node);
  for (;;) {
    const name = path.basename(node);
    const disk = candidates.find(
      ({ path: own, kernelDevice }) => kernelDevice?.path === `/dev/${name}` || samePlace(own, `/dev/${name}`),
    );
    if (disk !== undefined) return { disk, offset };
    const start = readAttribute(`${node}/start`);
    if (readAttribute(`${node}/partition`) !== null && start !== null) {
      offset += Number(start) * SECTOR;
      node = path.dirname(node);
      continue;
    }
    const backing = readAttribute(`${node}/loop/backing_file`);
    const behind = backing === null ? undefined : candidates.find((one) => samePlace(one.path, backing));
    if (behind !== undefined)
      return { disk: behind, offset: offset + Number(readAttribute(`${node}/loop/offset`) ?? 0) };
    const bytes = Number(readAttribute(`${node}/size`) ?? 0) * SECTOR;
    if (named !== null && /^nbd\d+$/.test(name) && bytes === named.size) return { disk: named, offset };
    const where = named === null ? 'on any disk; name it with --device' : `on disk "${named.name}"`;
    throw new BlksnapError('EINVAL', `Cannot mark the file's blocks: it lies on /dev/${first}, which is not ${where}`);
  }
}

function samePlace(a: string, b: string): boolean {
  const [one, other] = [a, b].map((given) => fs.statSync(given, { throwIfNoEntry: false }));
  if (one === undefined || other === undefined) return false;
  if (one.isBlockDevice() && other.isBlockDevice()) return one.rdev === other.rdev;
  return one.dev === other.dev && one.ino === other.ino;
}
