/** Tables of device-mapper volumes as text: which can be loaded into a second device while the first works, and the one
 *  that leads a volume to another device. */

import { BlksnapError } from '../util/errors.ts';

const SECTOR = 512;

/** Targets that keep nothing of their own in memory that two devices would have to share, or (thin) leave that to the
 *  pool. */
const REPEATABLE = new Set(['linear', 'striped', 'crypt', 'thin', 'unstriped', 'delay', 'flakey', 'zero', 'error']);

export interface TableTarget {
  readonly start: number;
  readonly sectors: number;
  readonly type: string;
  readonly args: readonly string[];
}

/** Errors: EPROTO for what dmsetup does not print. */
export function parseVolumeTable(table: string): TableTarget[] {
  return table
    .split('\n')
    .filter((line) => line.trim() !== '')
    .map((line) => {
      const [start, sectors, type, ...args] = line.trim().split(/\s+/);
      const target = { start: Number(start), sectors: Number(sectors), type: type ?? '', args };
      if (Number.isSafeInteger(target.start) && Number.isSafeInteger(target.sectors) && type !== undefined)
        return target;
      throw new BlksnapError('EPROTO', 'Cannot understand the table that dmsetup prints');
    });
}

export function tableBytes(table: string): number {
  return parseVolumeTable(table).reduce((sum, { sectors }) => sum + sectors, 0) * SECTOR;
}

/** Errors: EOPNOTSUPP for a table that cannot be loaded a second time; with what to attach instead. */
export function refuseUnrepeatable(volume: string, table: string): void {
  const refuse = (why: string, next: string): never => {
    throw new BlksnapError('EOPNOTSUPP', `Cannot attach "${volume}" while it is in use: ${why}; ${next}`);
  };
  const targets = parseVolumeTable(table);
  if (targets.length === 0) refuse('it has no table', 'load one first');
  for (const { type, args } of targets) {
    if (!REPEATABLE.has(type)) {
      refuse(`a target of type "${type}" cannot be in two devices at once`, 'attach a volume that lies on it');
    }
    // The key lies in a keyring that only the program which opened the volume could read.
    if (type === 'crypt' && args[1]?.startsWith(':') === true) {
      refuse(
        'its key is in a keyring of the kernel, and cannot be loaded again',
        'attach a volume above or below it, or open it with cryptsetup open --disable-keyring',
      );
    }
  }
}

/** Whether the table that dmsetup prints without keys can be loaded as it is. */
export function hidesKeys(table: string): boolean {
  return parseVolumeTable(table).some(({ type }) => type === 'crypt');
}

/** The table of a volume that leads to another device, as the kernel prints it. `device`: MAJOR:MINOR. */
export function tableTo(device: string, sizeBytes: number): string {
  return `0 ${sizeBytes / SECTOR} linear ${device} 0\n`;
}

/** MAJOR:MINOR of the device that a table of `tableTo` leads to; null for any other table. */
export function tableTarget(table: string): string | null {
  return /^0 \d+ linear (\d+:\d+) 0\n?$/.exec(table)?.[1] ?? null;
}
