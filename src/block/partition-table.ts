/** Finds the partitions of a device: GPT (partition-gpt.ts) where there is one, else MBR (partition-mbr.ts).
 *
 *  The table comes from whoever writes to the disk and is not to be trusted: what overlaps, lies outside, or contradicts
 *  itself is left out with a warning; nothing in a table can make this throw or read without bound.
 *  Only the read of a sector can fail. */

import type { BlockDevice } from './device.ts';
import type { DeviceRange } from './range-device.ts';
import { readGpt } from './partition-gpt.ts';
import { readMbr } from './partition-mbr.ts';

export interface Partition extends DeviceRange {
  /** As the kernel counts: GPT by entry, MBR 1 to 4 for primary and from 5 for logical ones. */
  readonly number: number;
  /** The GPT type's UUID, or the MBR type as `0x83`. */
  readonly type: string;
  /** GPT's name; empty where there is none. */
  readonly label: string;
}

export interface PartitionTable {
  readonly scheme: 'gpt' | 'mbr';
  /** By number. None overlaps another, all lie in the device and on its blocks. */
  readonly partitions: readonly Partition[];
  readonly warnings: readonly string[];
}

/** Reads bytes of the device. */
export type ReadBytes = (offset: number, length: number) => Promise<Uint8Array>;

/** Null when the device has no partition table. Errors: those of reading. */
export async function readPartitionTable(
  device: Pick<BlockDevice, 'size' | 'logicalBlockSize'>,
  read: ReadBytes,
): Promise<PartitionTable | null> {
  const found = (await readGpt(device, read)) ?? (await readMbr(device, read));
  if (found === null) return null;
  const warnings = [...found.warnings];
  const partitions = sound(found.partitions, device, warnings);
  return { scheme: found.scheme, partitions, warnings };
}

/** Drops what lies outside the device, off its blocks, or on another partition. */
function sound(
  candidates: readonly Partition[],
  { size, logicalBlockSize }: Pick<BlockDevice, 'size' | 'logicalBlockSize'>,
  warnings: string[],
): Partition[] {
  const good: Partition[] = [];
  for (const one of candidates.toSorted((a, b) => a.number - b.number)) {
    const { number, offset, length } = one;
    const leaveOut = (why: string): void => void warnings.push(`partition ${number} is left out: ${why}`);
    const inside = Number.isSafeInteger(offset + length) && offset >= 0 && length > 0 && offset + length <= size;
    if (!inside) leaveOut(`it has ${length} bytes from ${offset} on, the disk has ${size}`);
    else if (offset % logicalBlockSize !== 0 || length % logicalBlockSize !== 0) {
      leaveOut(`it does not lie on blocks of ${logicalBlockSize} bytes`);
    } else {
      const other = good.find((before) => before.offset < offset + length && offset < before.offset + before.length);
      if (other === undefined) good.push(one);
      else leaveOut(`it overlaps partition ${other.number}`);
    }
  }
  return good;
}
