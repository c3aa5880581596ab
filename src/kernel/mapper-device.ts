/** Device-mapper devices as sysfs shows them. Linux alone; elsewhere there are none. */

import fs from 'node:fs';
import { formatDeviceNumber, listNames, readAttribute } from '../io/sysfs.ts';

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
  const directory = directories().find((one) => readAttribute(`${one}/dm/name`) === name);
  return directory === undefined ? null : describe(directory);
}

/** The device that a path names; null when it names something else. */
export function mapperDeviceAt(path: string): MapperDevice | null {
  const number = deviceNumber(path);
  const directory = number === null ? undefined : directories().find((one) => readAttribute(`${one}/dev`) === number);
  return directory === undefined ? null : describe(directory);
}

/** MAJOR:MINOR of the block device that a path names; null for anything else. */
export function deviceNumber(path: string): string | null {
  const stat = fs.statSync(path, { throwIfNoEntry: false });
  return stat?.isBlockDevice() === true ? formatDeviceNumber(stat.rdev) : null;
}

/** Any block device's logical block size, by MAJOR:MINOR; null where there is none. */
export function logicalBlockSizeOf(number: string): number | null {
  const text = readAttribute(`/sys/dev/block/${number}/queue/logical_block_size`);
  return text === null ? null : Number(text);
}

/** What the device's tables, live and loaded, lie on: MAJOR:MINOR each. */
export function devicesBelow(number: string): string[] {
  const directory = `/sys/dev/block/${number}/slaves`;
  return listNames(directory).flatMap((name) => readAttribute(`${directory}/${name}/dev`) ?? []);
}

function directories(): string[] {
  return listNames('/sys/block')
    .filter((name) => name.startsWith('dm-'))
    .map((name) => `/sys/block/${name}`);
}

function describe(directory: string): MapperDevice | null {
  const [name, number] = [readAttribute(`${directory}/dm/name`), readAttribute(`${directory}/dev`)];
  // It may have gone meanwhile.
  if (name === null || number === null) return null;
  return {
    name,
    uuid: readAttribute(`${directory}/dm/uuid`) ?? '',
    number,
    path: `/dev/mapper/${name}`,
    node: directory.replace('/sys/block', '/dev'),
    suspended: readAttribute(`${directory}/dm/suspended`) === '1',
    readOnly: readAttribute(`${directory}/ro`) === '1',
    sizeBytes: Number(readAttribute(`${directory}/size`)) * 512,
    logicalBlockSize: Number(readAttribute(`${directory}/queue/logical_block_size`)),
  };
}
