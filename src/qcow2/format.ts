/** The qcow2 format's numbers: limits, and the entries of its L1, L2 and refcount tables.
 *
 *  Everything is big-endian. A file is cut into clusters of 2^clusterBits bytes. A guest offset finds its
 *  data in two steps: L1 entry -> L2 table (one cluster) -> L2 entry -> host cluster. Source: the document
 *  docs/interop/qcow2 of QEMU.
 *
 *      L1 entry, 8 bytes       9-55 offset of the L2 table, 0: nothing allocated    63 refcount is one
 *      L2 entry, 8 bytes       0 reads as zero    9-55 host offset, 0: unallocated  62 compressed  63 refcount is one
 *        compressed            0..x-1 host offset (any byte)    x..61 further 512-byte sectors   x = 70 - clusterBits
 *      extended L2, 16 bytes   the above without bit 0, then a bit per subcluster: 32 "zero", 32 "allocated"
 *
 *  Entries are read as two 32-bit halves: the mapping of a read makes no BigInt. */

import { alignUp } from '../util/units.ts';

export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
/** Extended L2 entries cut a cluster into this many subclusters. */
export const SUBCLUSTERS = 32;
export const MIN_EXTENDED_CLUSTER_BITS = 14;
/** QEMU opens no image with a larger L1 table; neither do we, and we write none. */
export const MAX_L1_BYTES = 32 * 2 ** 20;
export const MAX_REFCOUNT_TABLE_BYTES = 8 * 2 ** 20;
export const MAX_SNAPSHOTS = 65_536;
export const MAX_BACKING_NAME_BYTES = 1023;
/** Offsets above are not exact as JavaScript numbers, and no file is as large. */
export const MAX_OFFSET = 2 ** 53;

/** An L2 entry's state. */
export const UNALLOCATED = 0;
export const ZERO = 1;
export const DATA = 2;
export const COMPRESSED = 3;
/** Not a state of the format: the entry breaks it. */
export const CORRUPT = 4;

/** In the upper half of an L1 or L2 entry. */
const REFCOUNT_IS_ONE = 0x8000_0000;
const IS_COMPRESSED = 0x4000_0000;
const OFFSET_HIGH = 0x00ff_ffff;
const L1_RESERVED_HIGH = 0x7f00_0000;
const L2_RESERVED_HIGH = 0x3f00_0000;
/** In the lower half. */
const OFFSET_LOW = 0xffff_fe00;
const READS_AS_ZERO = 1;

export type EntryState = typeof UNALLOCATED | typeof ZERO | typeof DATA | typeof COMPRESSED | typeof CORRUPT;

/** A decoded L2 entry; one is made and used again for every lookup. */
export class L2Entry {
  state: EntryState = UNALLOCATED;
  /** DATA: where the cluster lies in the file. COMPRESSED: where its first byte does. */
  host = 0;
  /** COMPRESSED: bytes up to the end of the last sector used. */
  hostLength = 0;
  /** Extended entries, state DATA: the subclusters that are allocated, and those that are zero. */
  allocated = 0;
  zero = 0;
}

/** Entries that the L1 table of a disk of `size` bytes needs. */
export function l1Entries(size: number, clusterBits: number, extended: boolean): number {
  return Math.ceil(size / l2Coverage(clusterBits, extended));
}

/** Bytes of the disk that one L2 table maps. */
export function l2Coverage(clusterBits: number, extended: boolean): number {
  return 2 ** clusterBits * 2 ** (clusterBits - (extended ? 4 : 3));
}

/** The file offset of the L2 table; 0 when there is none, -1 when the entry breaks the format. */
export function decodeL1(view: DataView, position: number, clusterBits: number): number {
  const high = view.getUint32(position);
  const low = view.getUint32(position + 4);
  if ((high & L1_RESERVED_HIGH) !== 0 || (low & (2 ** clusterBits - 1)) !== 0) return -1;
  return (high & OFFSET_HIGH) * 2 ** 32 + low;
}

/** Decodes a standard (8-byte) entry into `entry`. Version 2 has no zero clusters. */
export function decodeL2(view: DataView, position: number, clusterBits: number, version: number, entry: L2Entry): void {
  const high = view.getUint32(position);
  const low = view.getUint32(position + 4);
  if ((high & IS_COMPRESSED) !== 0) {
    decodeCompressed(high, low, clusterBits, entry);
    return;
  }
  entry.host = (high & OFFSET_HIGH) * 2 ** 32 + ((low & OFFSET_LOW) >>> 0);
  const flags = low & ~OFFSET_LOW;
  if ((high & L2_RESERVED_HIGH) !== 0 || (low & OFFSET_LOW & (2 ** clusterBits - 1)) !== 0) entry.state = CORRUPT;
  else if (flags === 0) entry.state = entry.host === 0 ? emptyState(high) : DATA;
  else entry.state = flags === READS_AS_ZERO && version >= 3 ? ZERO : CORRUPT;
}

/** Decodes an extended (16-byte) entry. State DATA stands for a mixture that `allocated` and `zero` tell. */
export function decodeExtendedL2(view: DataView, position: number, clusterBits: number, entry: L2Entry): void {
  decodeL2(view, position, clusterBits, 2, entry);
  if (entry.state !== DATA && entry.state !== UNALLOCATED) return;
  entry.zero = view.getUint32(position + 8);
  entry.allocated = view.getUint32(position + 12);
  const overlap = (entry.zero & entry.allocated) !== 0;
  const nowhere = entry.allocated !== 0 && entry.state === UNALLOCATED;
  entry.state = overlap || nowhere ? CORRUPT : DATA;
}

/** A host offset of 0 is only for external data files, which we refuse. */
function emptyState(high: number): EntryState {
  return (high & REFCOUNT_IS_ONE) === 0 ? UNALLOCATED : CORRUPT;
}

function decodeCompressed(high: number, low: number, clusterBits: number, entry: L2Entry): void {
  const highOffsetBits = 70 - clusterBits - 32;
  const further = (high & ~(REFCOUNT_IS_ONE | IS_COMPRESSED)) >>> highOffsetBits;
  entry.host = (high & (2 ** highOffsetBits - 1)) * 2 ** 32 + low;
  entry.hostLength = (further + 1) * 512 - (low & 511);
  entry.state = entry.host === 0 ? CORRUPT : COMPRESSED;
}

export function encodeL1(view: DataView, position: number, l2Offset: number): void {
  view.setUint32(position, (REFCOUNT_IS_ONE | Math.floor(l2Offset / 2 ** 32)) >>> 0);
  view.setUint32(position + 4, l2Offset >>> 0);
}

export function encodeL2Data(view: DataView, position: number, host: number): void {
  encodeL1(view, position, host);
}

export function encodeL2Zero(view: DataView, position: number): void {
  view.setUint32(position, 0);
  view.setUint32(position + 4, READS_AS_ZERO);
}

export function encodeL2Compressed(
  view: DataView,
  position: number,
  clusterBits: number,
  host: number,
  length: number,
): void {
  const highOffsetBits = 70 - clusterBits - 32;
  const further = Math.ceil(((host % 512) + length) / 512) - 1;
  view.setUint32(position, (IS_COMPRESSED | (further * 2 ** highOffsetBits + Math.floor(host / 2 ** 32))) >>> 0);
  view.setUint32(position + 4, host >>> 0);
}

/** Compressed data must start below this offset: the entry has no more bits. */
export function compressedOffsetLimit(clusterBits: number): number {
  return Math.min(2 ** (70 - clusterBits), MAX_OFFSET);
}

/** How many refcount blocks, and clusters of the table that points to them, a file of `used` clusters needs
 *  when those count themselves too. Refcounts are 16 bits wide. */
export function refcountClusters(used: number, clusterBits: number): { blocks: number; table: number } {
  const clusterSize = 2 ** clusterBits;
  let blocks = 0;
  let table = 0;
  for (;;) {
    const wantBlocks = Math.ceil((used + blocks + table) / (clusterSize / 2));
    const wantTable = alignUp(wantBlocks * 8, clusterSize) / clusterSize;
    if (wantBlocks === blocks && wantTable === table) return { blocks, table };
    blocks = wantBlocks;
    table = wantTable;
  }
}
