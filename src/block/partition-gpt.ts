/** Reads a GUID partition table (UEFI specification 2.10, chapter 5.3): little-endian.
 *
 *  Header, in the second logical block and, as a backup, in the last:
 *      0 "EFI PART"            8 revision u32        12 header size u32, at least 92
 *     16 CRC-32 of the header with this field 0      24 block of this header u64
 *     32 block of the other header u64               40 first, 48 last usable block u64
 *     56 disk UUID            72 first block of the entries u64
 *     80 number of entries u32   84 size of one u32, 128 × 2^n   88 CRC-32 of the entries
 *  Entry: 0 type UUID (zero: unused)   16 UUID   32 first, 40 last block u64   56 name, 36 UTF-16 units
 *
 *  A device may be larger or have smaller blocks than the disk that its table was made on (the copy of a 4K disk
 *  in a file, say), so blocks of 512 and 4096 bytes are tried too. */

import { crc32 } from '../util/crc32.ts';
import type { BlockDevice } from './device.ts';
import type { Partition, PartitionTable, ReadBytes } from './partition-table.ts';

const SIGNATURE = 'EFI PART';
const MIN_HEADER = 92;
const MIN_ENTRY = 128;
/** As the kernel and sgdisk bound them, with room: 4096 entries of 128 bytes. */
const MAX_ENTRIES_BYTES = 512 * 1024;
const NAME_UNITS = 36;

interface Header {
  /** Bytes of one block, as the table counts. */
  readonly block: number;
  readonly firstUsable: number;
  readonly lastUsable: number;
  readonly backupAt: number;
  readonly entries: DataView;
  readonly entrySize: number;
}

type Geometry = Pick<BlockDevice, 'size' | 'logicalBlockSize'>;

/** Null where there is no GPT. */
export async function readGpt(device: Geometry, read: ReadBytes): Promise<PartitionTable | null> {
  const warnings: string[] = [];
  const header = await findHeader(device, read, warnings);
  if (header === null) return null;
  return { scheme: 'gpt', partitions: partitionsOf(header, warnings), warnings };
}

async function findHeader(device: Geometry, read: ReadBytes, warnings: string[]): Promise<Header | null> {
  const sizes = [...new Set([device.logicalBlockSize, 512, 4096])].filter((block) => device.size >= 6 * block);
  const doubts: string[] = [];
  for (const block of sizes) {
    const header = await readHeader(device, read, { block, index: 1 });
    if (typeof header === 'string') {
      if (header !== '') doubts.push(`the primary GPT header is damaged: ${header}`);
      continue;
    }
    if (header.backupAt >= device.size / block) warnings.push('the GPT ends beyond the disk: was it cut off?');
    else if (typeof (await readHeader(device, read, { block, index: header.backupAt })) === 'string') {
      warnings.push('the backup GPT header is damaged or not there; repair it with sgdisk -e');
    }
    return header;
  }
  for (const block of sizes) {
    const header = await readHeader(device, read, { block, index: Math.floor(device.size / block) - 1 });
    if (typeof header === 'string') continue;
    // Without a word about GPT at the front, an old backup may have outlived the table.
    if (doubts.length === 0 && !(await isProtected(read, block))) continue;
    warnings.push(...doubts, 'the backup GPT is used; repair the primary with sgdisk or gdisk');
    return header;
  }
  return null;
}

/** Whether the MBR says that a GPT follows. */
async function isProtected(read: ReadBytes, block: number): Promise<boolean> {
  const mbr = await read(0, block);
  if (mbr[510] !== 0x55 || mbr[511] !== 0xaa) return false;
  return [446, 462, 478, 494].some((at) => mbr[at + 4] === 0xee);
}

/** The header, '' where none is, or what is wrong with it. */
async function readHeader(
  device: Geometry,
  read: ReadBytes,
  place: { readonly block: number; readonly index: number },
): Promise<Header | string> {
  const { block, index } = place;
  const bytes = await read(index * block, block);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (Buffer.from(bytes.subarray(0, 8)).toString('latin1') !== SIGNATURE) return '';
  const size = view.getUint32(12, true);
  if (size < MIN_HEADER || size > block) return `its size is ${size}`;
  const stored = view.getUint32(16, true);
  const plain = Uint8Array.from(bytes.subarray(0, size));
  plain.fill(0, 16, 20);
  if (crc32(plain) !== stored) return 'its checksum is wrong';
  const number = (at: number): number => Number(view.getBigUint64(at, true));
  if (number(24) !== index) return `it says that it is in block ${number(24)}, and is in ${index}`;
  const [count, entrySize] = [view.getUint32(80, true), view.getUint32(84, true)];
  if (entrySize < MIN_ENTRY || entrySize > 4096 || !Number.isInteger(Math.log2(entrySize / MIN_ENTRY))) {
    return `its entries have ${entrySize} bytes`;
  }
  const length = count * entrySize;
  const start = number(72) * block;
  if (count === 0 || length > MAX_ENTRIES_BYTES) return `it has ${count} entries`;
  const padded = Math.ceil(length / block) * block;
  if (start < 2 * block || start + padded > device.size) return `its entries lie at ${start}, outside the disk`;
  const entries = (await read(start, padded)).subarray(0, length);
  if (crc32(entries) !== view.getUint32(88, true)) return 'the checksum of its entries is wrong';
  return {
    block,
    firstUsable: number(40),
    lastUsable: number(48),
    backupAt: number(32),
    entries: new DataView(entries.buffer, entries.byteOffset, entries.length),
    entrySize,
  };
}

function partitionsOf(header: Header, warnings: string[]): Partition[] {
  const { block, entries, entrySize } = header;
  const partitions: Partition[] = [];
  for (let at = 0; at < entries.byteLength; at += entrySize) {
    const type = uuid(entries, at);
    if (/^[0-]*$/.test(type)) continue;
    const number = at / entrySize + 1;
    const first = Number(entries.getBigUint64(at + 32, true));
    const last = Number(entries.getBigUint64(at + 40, true));
    if (first > last || first < header.firstUsable || last > header.lastUsable) {
      warnings.push(
        `partition ${number} is left out: it has blocks ${first} to ${last}, usable are ${header.firstUsable} to ${header.lastUsable}`,
      );
      continue;
    }
    partitions.push({
      number,
      offset: first * block,
      length: (last - first + 1) * block,
      type,
      label: label(entries, at),
    });
  }
  return partitions;
}

/** The first three fields are little-endian, the rest are bytes. */
function uuid(view: DataView, at: number): string {
  const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');
  const bytes = (from: number, to: number): string => {
    let text = '';
    for (let i = from; i < to; i++) text += hex(view.getUint8(at + i), 2);
    return text;
  };
  const head = `${hex(view.getUint32(at, true), 8)}-${hex(view.getUint16(at + 4, true), 4)}-${hex(view.getUint16(at + 6, true), 4)}`;
  return `${head}-${bytes(8, 10)}-${bytes(10, 16)}`;
}

function label(view: DataView, at: number): string {
  let text = '';
  for (let i = 0; i < NAME_UNITS; i++) {
    const unit = view.getUint16(at + 56 + 2 * i, true);
    if (unit === 0) break;
    text += String.fromCharCode(unit);
  }
  // For people's eyes and terminals.
  return text.replaceAll(/[\p{Cc}\p{Cf}\p{Cs}]/gu, '?');
}
