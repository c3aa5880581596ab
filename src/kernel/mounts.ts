/** Who uses a block device of the kernel: file systems that are mounted on it, on its partitions and on device-mapper
 *  volumes above it, as /proc and sysfs tell. */

import fs from 'node:fs';
import path from 'node:path';
import { unescapeField } from '../io/sysfs.ts';

const SYS_BLOCK = '/sys/class/block';

/** Names (as in /sys/class/block) of a device, its partitions, and what lies on any of them. */
function devicesOver(name: string): string[] {
  const directory = path.join(SYS_BLOCK, name);
  if (!fs.existsSync(directory)) return [];
  const partitions = fs
    .readdirSync(`${directory}/`)
    .filter((entry) => fs.existsSync(`${directory}/${entry}/partition`));
  const holders = fs.existsSync(`${directory}/holders`) ? fs.readdirSync(`${directory}/holders`) : [];
  return [name, ...[...partitions, ...holders].flatMap(devicesOver)];
}

function numberOf(name: string): string {
  return fs.readFileSync(path.join(SYS_BLOCK, name, 'dev'), 'utf8').trim();
}

/** Where file systems on the device are mounted: one place for each of them. */
export function mountPointsOn(device: string): string[] {
  const over = devicesOver(path.basename(fs.realpathSync(device)));
  const numbers = new Set(over.map(numberOf));
  const places = new Map<string, string>();
  for (const line of fs.readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    const [, , number, , place, ...rest] = line.split(' ');
    const source = rest[rest.indexOf('-') + 2];
    if (number === undefined || place === undefined || source === undefined) continue;
    // btrfs and its like mount under numbers that are no device's.
    const name = source.startsWith('/dev/') && fs.existsSync(source) ? path.basename(fs.realpathSync(source)) : '';
    if (numbers.has(number) || over.includes(name)) places.set(number, places.get(number) ?? unescapeField(place));
  }
  return [...places.values()];
}

/** Processes, but this one, that have the device or a partition of it open: `dd (123)`. */
export function openersOf(device: string): string[] {
  const names = new Set(devicesOver(path.basename(fs.realpathSync(device))).map((name) => `/dev/${name}`));
  const processes = fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid);
  return processes.flatMap((pid) => {
    try {
      const open = fs.readdirSync(`/proc/${pid}/fd`).some((fd) => names.has(fs.readlinkSync(`/proc/${pid}/fd/${fd}`)));
      return open ? [`${fs.readFileSync(`/proc/${pid}/comm`, 'utf8').trim()} (${pid})`] : [];
    } catch {
      // It has ended meanwhile.
      return [];
    }
  });
}
