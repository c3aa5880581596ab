/** Opens a block device of the kernel (/dev/…), exclusively: not while it is mounted or otherwise in use.
 *
 *  Refused, because a copy of their data would not be one: devices with integrity metadata, with inline
 *  encryption, and zoned ones. */

import fs from 'node:fs';
import os from 'node:os';
import { ioctl } from '../io/sys.ts';
import { formatDeviceNumber, readAttribute } from '../io/sysfs.ts';
import { BlksnapError, errnoError, toBlksnapError } from '../util/errors.ts';
import { DescriptorDevice } from './descriptor-device.ts';
import type { OpenDeviceOptions } from './file-device.ts';

// linux/fs.h
const BLKROGET = 0x125e;
const BLKSSZGET = 0x1268;
const BLKPBSZGET = 0x127b;
const BLKGETSIZE64 = 0x80081272;

/** Errors: EBUSY when the device is in use; EROFS; EOPNOTSUPP for a kind that is refused. */
export function openHostDevice(path: string, options: OpenDeviceOptions): DescriptorDevice {
  const readOnly = options.readOnly ?? false;
  const sysfs = sysfsOf(fs.statSync(path).rdev);
  refuseUnsuitable(path, sysfs);
  const fd = openExclusively(path, readOnly, options.direct ?? false);
  try {
    return describeDevice(fd, path, options, sysfs);
  } catch (cause) {
    fs.closeSync(fd);
    throw cause;
  }
}

function openExclusively(path: string, readOnly: boolean, direct: boolean): number {
  const { O_RDONLY, O_RDWR, O_DIRECT, O_EXCL } = fs.constants;
  try {
    return fs.openSync(path, (readOnly ? O_RDONLY : O_RDWR) | O_EXCL | (direct ? O_DIRECT : 0));
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === 'EBUSY') {
      throw new BlksnapError(
        'EBUSY',
        `Cannot open "${path}": it is mounted or in use (see lsblk); unmount or stop it first. Only device-mapper volumes ` +
          '(LVM, dm-crypt, …) can be attached while they are in use',
        { cause },
      );
    }
    throw toBlksnapError(cause, `Cannot open "${path}"`);
  }
}

function describeDevice(fd: number, path: string, options: OpenDeviceOptions, sysfs: Sysfs): DescriptorDevice {
  const readOnly = options.readOnly ?? false;
  if (!readOnly && ask(fd, BLKROGET, path) !== 0) {
    throw new BlksnapError('EROFS', `Cannot open "${path}" for writing: the device is read-only; attach it read-only`);
  }
  const size = ask(fd, BLKGETSIZE64, path);
  const logicalBlockSize = ask(fd, BLKSSZGET, path);
  if (size === 0) throw new BlksnapError('EINVAL', `Cannot open "${path}" as a disk: it is empty`);
  const zeroes = !readOnly && sysfs.number('queue/write_zeroes_max_bytes') > 0;
  return new DescriptorDevice(options.reactor, {
    name: path,
    fd,
    sizeNow: () => ask(fd, BLKGETSIZE64, path),
    logicalBlockSize,
    physicalBlockSize: Math.max(logicalBlockSize, ask(fd, BLKPBSZGET, path)),
    readOnly,
    memoryAlignment: options.direct === true ? logicalBlockSize : 1,
    kind: 'kernel device',
    cached: options.direct === true ? 'nothing' : 'writes',
    capabilities: {
      flush: true,
      fua: true,
      // fallocate, which discards by zeroing, is the way that does not block: it needs the device's own zeroing.
      discard: zeroes,
      writeZeroes: !readOnly,
      fastZero: zeroes,
      rotational: sysfs.number('queue/rotational') === 1,
    },
  });
}

/** An ioctl that answers with an int, or with 64 bits where the number says so. */
function ask(fd: number, request: number, path: string): number {
  const answer = Buffer.alloc(8);
  const result = ioctl(fd, request, answer);
  if (result < 0) throw errnoError(-result, `Cannot ask "${path}" for its geometry`);
  const littleEndian = os.endianness() === 'LE';
  if (request === BLKGETSIZE64) return Number(littleEndian ? answer.readBigUInt64LE() : answer.readBigUInt64BE());
  return littleEndian ? answer.readUInt32LE() : answer.readUInt32BE();
}

/** The attributes of a device in sysfs; a partition has those of its disk. */
interface Sysfs {
  exists(name: string): boolean;
  /** Empty where there is none. */
  text(name: string): string;
  /** 0 where there is none. */
  number(name: string): number;
}

function sysfsOf(rdev: number): Sysfs {
  const own = `/sys/dev/block/${formatDeviceNumber(rdev)}`;
  const disk = fs.existsSync(`${own}/partition`) ? `${own}/..` : own;
  const text = (name: string): string => readAttribute(`${disk}/${name}`) ?? '';
  return { exists: (name) => fs.existsSync(`${disk}/${name}`), text, number: (name) => Number(text(name)) };
}

/** Errors: EOPNOTSUPP, as the opening comment says. */
export function refuseUnsuitable(path: string, sysfs: Pick<Sysfs, 'exists' | 'text'>): void {
  const refuse = (what: string): never => {
    throw new BlksnapError('EOPNOTSUPP', `Cannot open "${path}" as a disk: ${what} is not supported`);
  };
  if (!['', 'none', 'nop'].includes(sysfs.text('integrity/format'))) refuse('integrity metadata');
  if (sysfs.exists('queue/crypto')) refuse('inline encryption');
  if (!['', 'none'].includes(sysfs.text('queue/zoned'))) refuse('a zoned device');
}
