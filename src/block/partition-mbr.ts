/** Reads a DOS partition table: four entries in the master boot record, and those of extended partitions, which
 *  are chains of boot records with one logical partition each.
 *
 *  Entry of 16 bytes: 0 flag (0 or 0x80)   4 type   8 first sector u32   12 sectors u32, little-endian. Sectors
 *  have the device's logical block size. CHS addresses are not looked at. */

import type { BlockDevice } from './device.ts';
import type { Partition, PartitionTable, ReadBytes } from './partition-table.ts';

const ENTRIES = [446, 462, 478, 494];
const EXTENDED = new Set([0x05, 0x0f, 0x85]);
const PROTECTIVE = 0xee;
const FIRST_LOGICAL = 5;
/** Longer chains are circles, or nobody's. */
const MAX_LOGICAL = 128;

interface Entry {
  readonly type: number;
  /** Sectors. */
  readonly first: number;
  readonly count: number;
}

/** Null where there is no table. */
export async function readMbr(
  device: Pick<BlockDevice, 'size' | 'logicalBlockSize'>,
  read: ReadBytes,
): Promise<PartitionTable | null> {
  const sector = device.logicalBlockSize;
  const entries = entriesOf(await read(0, sector));
  if (entries === null || entries.every(({ type, count }) => type === 0 || count === 0)) return null;
  const warnings: string[] = [];
  if (entries.some(({ type }) => type === PROTECTIVE)) {
    return { scheme: 'gpt', partitions: [], warnings: ['the MBR announces a GPT, and neither copy of it can be used'] };
  }
  const partitions: Partition[] = [];
  for (const [index, entry] of entries.entries()) {
    if (entry.type === 0 || entry.count === 0) continue;
    if (EXTENDED.has(entry.type)) await readChain(entry, { device, read, partitions, warnings });
    else partitions.push(partition(index + 1, entry, sector));
  }
  return { scheme: 'mbr', partitions, warnings };
}

function partition(number: number, { type, first, count }: Entry, sector: number): Partition {
  return {
    number,
    offset: first * sector,
    length: count * sector,
    type: `0x${type.toString(16).padStart(2, '0')}`,
    label: '',
  };
}

/** The entries of a boot record; null when it is none: boot sectors of file systems carry its signature too. */
function entriesOf(record: Uint8Array): Entry[] | null {
  if (record[510] !== 0x55 || record[511] !== 0xaa) return null;
  const view = new DataView(record.buffer, record.byteOffset, record.length);
  if (ENTRIES.some((at) => (view.getUint8(at) & 0x7f) !== 0)) return null;
  return ENTRIES.map((at) => ({
    type: view.getUint8(at + 4),
    first: view.getUint32(at + 8, true),
    count: view.getUint32(at + 12, true),
  }));
}

interface Chain {
  readonly device: Pick<BlockDevice, 'size' | 'logicalBlockSize'>;
  readonly read: ReadBytes;
  readonly partitions: Partition[];
  readonly warnings: string[];
}

/** A link's first entry is a partition, counted from the link; its second is the next link, counted from the extended
 *  partition. Links must go forward, as every program makes them. */
async function readChain(extended: Entry, { device, read, partitions, warnings }: Chain): Promise<void> {
  const sector = device.logicalBlockSize;
  const end = extended.first + extended.count;
  let number = partitions.reduce((next, { number: used }) => Math.max(next, used + 1), FIRST_LOGICAL);
  let link = extended.first;
  for (let links = 0; ; links++) {
    const stop = (why: string): void =>
      void warnings.push(`the chain of logical partitions ends at sector ${link}: ${why}`);
    if (links >= MAX_LOGICAL) return stop(`it has more than ${MAX_LOGICAL} links`);
    if (link >= end || (link + 1) * sector > device.size) return stop('that lies outside');
    const entries = entriesOf(await read(link * sector, sector));
    if (entries === null) return stop('there is no boot record');
    const logical = entries.find(({ type, count }) => type !== 0 && count !== 0 && !EXTENDED.has(type));
    if (logical !== undefined) {
      const first = link + logical.first;
      if (logical.first === 0 || first + logical.count > end)
        warnings.push(`partition ${number} is left out: it does not lie in its extended partition`);
      else partitions.push(partition(number, { ...logical, first }, sector));
      number++;
    }
    const next = entries.find(({ type, count }) => EXTENDED.has(type) && count !== 0);
    if (next === undefined) return;
    if (extended.first + next.first <= link) return stop('it goes back');
    link = extended.first + next.first;
  }
}
