/** Device-mapper devices as sysfs shows them. Linux alone; elsewhere there are none. */

import fs from 'node:fs';

export interface MapperDevice {
  /** As dmsetup and /dev/mapper have it. */
  readonly name: string;
  /** Empty where it was made without one. */
  readonly uuid: string;
  /** MAJOR:MINOR. */
  readonly number: string;
  /** The path that is the same after a start of the machine. */
  readonly path: string;
  /** The kernel's own node, there without udev too. */
  readonly node: string;
  readonly suspended: boolean;
  readonly readOnly: boolean;
  readonly sizeBytes: number;
  readonly logicalBlockSize: number;
}

/** Null when there is no device of that name. */
export function findMapperDevice(name: string): MapperDevice | null {
  const directory = directories().find((one) => read(`${one}/dm/name`) === name);
  return directory === undefined ? null : describe(directory);
}

/** The device that a path names; null when it names something else. */
export function mapperDeviceAt(path: string): MapperDevice | null {
  const number = deviceNumber(path);
  const directory = number === null ? undefined : directories().find((one) => read(`${one}/dev`) === number);
  return directory === undefined ? null : describe(directory);
}

/** MAJOR:MINOR of the block device that a path names; null for anything else. */
export function deviceNumber(path: string): string | null {
  const stat = fs.statSync(path, { throwIfNoEntry: false });
  if (stat === undefined || !stat.isBlockDevice()) return null;
  // The encoding of dev_t in userspace: 12 bits of major from bit 8, 20 of minor around them.
  const { rdev } = stat;
  return `${Math.floor(rdev / 256) % 4096}:${(rdev % 256) + Math.floor(rdev / 2 ** 20) * 256}`;
}

/** Any block device's logical block size, by MAJOR:MINOR; null where there is none. */
export function logicalBlockSizeOf(number: string): number | null {
  const text = read(`/sys/dev/block/${number}/queue/logical_block_size`);
  return text === null ? null : Number(text);
}

/** What the device's tables, live and loaded, lie on: MAJOR:MINOR each. */
export function devicesBelow(number: string): string[] {
  const directory = `/sys/dev/block/${number}/slaves`;
  return list(directory).flatMap((name) => read(`${directory}/${name}/dev`) ?? []);
}

function directories(): string[] {
  return list('/sys/block')
    .filter((name) => name.startsWith('dm-'))
    .map((name) => `/sys/block/${name}`);
}

function describe(directory: string): MapperDevice | null {
  const [name, number] = [read(`${directory}/dm/name`), read(`${directory}/dev`)];
  // It may have gone meanwhile.
  if (name === null || number === null) return null;
  return {
    name,
    uuid: read(`${directory}/dm/uuid`) ?? '',
    number,
    path: `/dev/mapper/${name}`,
    node: directory.replace('/sys/block', '/dev'),
    suspended: read(`${directory}/dm/suspended`) === '1',
    readOnly: read(`${directory}/ro`) === '1',
    sizeBytes: Number(read(`${directory}/size`)) * 512,
    logicalBlockSize: Number(read(`${directory}/queue/logical_block_size`)),
  };
}

function read(path: string): string | null {
  try {
    return fs.readFileSync(path, 'utf8').trim();
  } catch {
    return null;
  }
}

function list(directory: string): string[] {
  try {
    return fs.readdirSync(directory);
  } catch {
    return [];
  }
}
