/** What a path rests on: the file or device itself, the device of the filesystem that it lies on, the file
 *  behind a loop device, the disk of a partition, the devices under a device-mapper or md device, the backend of a
 *  volume that was attached in use, and so on down.
 *
 *  Linux alone knows (/sys, /proc/self/mountinfo); elsewhere, and where a layer does not tell, the way ends early. */

import fs from 'node:fs';
import { formatDeviceNumber, listNames, readAttribute, unescapeField } from '../io/sysfs.ts';

/** `file DEV:INODE` or `device MAJOR:MINOR`. Two paths with a thing in common write to the same place. */
export type Thing = string;

export interface Underlying {
  readonly own: Thing;
  /** Own, and everything below it. */
  readonly all: ReadonlySet<Thing>;
}

export function underlyingPath(path: string): Underlying {
  return underlying(fs.statSync(path), path);
}

/** Of an open file; an unnamed one has no path of its own. */
export function underlyingFd(fd: number, path: string): Underlying {
  return underlying(fs.fstatSync(fd), path);
}

function underlying(stat: fs.Stats, path: string): Underlying {
  const all = new Set<Thing>();
  addStat(all, stat, path);
  return { own: [...all][0]!, all };
}

function addStat(all: Set<Thing>, stat: fs.Stats, path: string): void {
  if (stat.isBlockDevice()) {
    addDevice(all, formatDeviceNumber(stat.rdev));
    return;
  }
  const thing = `file ${formatDeviceNumber(stat.dev)}:${stat.ino}`;
  if (all.has(thing)) return;
  all.add(thing);
  if (fs.existsSync(sysfs(formatDeviceNumber(stat.dev)))) addDevice(all, formatDeviceNumber(stat.dev));
  else addMountSource(all, path);
}

function addDevice(all: Set<Thing>, number: string): void {
  const thing = `device ${number}`;
  if (all.has(thing)) return;
  all.add(thing);
  const directory = sysfs(number);
  const backing = readAttribute(`${directory}/loop/backing_file`);
  if (backing !== null) addPath(all, backing);
  // A partition lies in the directory of its disk.
  const disk = fs.existsSync(`${directory}/partition`) ? readAttribute(`${directory}/../dev`) : null;
  if (disk !== null) addDevice(all, disk);
  for (const slave of listNames(`${directory}/slaves`)) {
    const below = readAttribute(`${directory}/slaves/${slave}/dev`);
    if (below !== null) addDevice(all, below);
  }
  const backend = fs.existsSync(`${directory}/dm`) ? backendOf(number) : null;
  if (backend !== null) addDevice(all, backend);
}

/** The UUID, in device-mapper, of the device that has the data of a volume while the volume's own table leads to a
 *  daemon, where the way through sysfs ends (docs/live-attach.md). `number`: the volume's MAJOR:MINOR. */
export function backendUuid(number: string): string {
  return `BLKSNAP-${number.replace(':', '-')}`;
}

function backendOf(number: string): string | null {
  const uuid = backendUuid(number);
  const name = listNames('/sys/block').find(
    (one) => one.startsWith('dm-') && readAttribute(`/sys/block/${one}/dm/uuid`) === uuid,
  );
  return name === undefined ? null : readAttribute(`/sys/block/${name}/dev`);
}

function addPath(all: Set<Thing>, path: string): void {
  const stat = statOf(path);
  if (stat !== undefined) addStat(all, stat, path);
}

/** Undefined for what is gone, or where this user may not look: others' loop devices must not stop him. */
function statOf(path: string): fs.Stats | undefined {
  try {
    return fs.statSync(path);
  } catch {
    return undefined;
  }
}

/** Filesystems with device numbers of their own (btrfs, say): the source of the mount tells. */
function addMountSource(all: Set<Thing>, path: string): void {
  let best = { point: '', source: '' };
  const real = fs.existsSync(path) ? fs.realpathSync(path) : path;
  for (const line of (readAttribute('/proc/self/mountinfo') ?? '').split('\n')) {
    const [before, after] = line.split(' - ');
    const point = unescapeField(before?.split(' ')[4] ?? '');
    const source = unescapeField(after?.split(' ')[1] ?? '');
    const inside = real === point || real.startsWith(point.endsWith('/') ? point : `${point}/`);
    if (point !== '' && inside && point.length >= best.point.length) best = { point, source };
  }
  if (best.source.startsWith('/')) addPath(all, best.source);
}

/** Writable loop devices over a file, by name: what is written through them passes everybody else by. */
export function loopsOver(path: string): string[] {
  const wanted = fs.statSync(path, { throwIfNoEntry: false });
  if (wanted === undefined) return [];
  return listNames('/sys/block').filter((name) => {
    const backing = name.startsWith('loop') ? readAttribute(`/sys/block/${name}/loop/backing_file`) : null;
    const stat = backing === null ? undefined : statOf(backing);
    const same = stat !== undefined && stat.dev === wanted.dev && stat.ino === wanted.ino;
    return same && readAttribute(`/sys/block/${name}/ro`) !== '1';
  });
}

function sysfs(number: string): string {
  return `/sys/dev/block/${number}`;
}
