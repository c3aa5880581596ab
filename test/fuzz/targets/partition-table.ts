/** Partition tables on disks that others write: the first bytes of a disk of 1 MiB, with its checksums as they are and as an
 *  enemy would make them. Partitions that come out lie in the disk, on its blocks, and not on each other. */

import { readPartitionTable } from '../../../src/block/partition-table.ts';
import { assert } from '../../../src/util/assert.ts';
import { crc32 } from '../../../src/util/crc32.ts';
import { MIB } from '../../../src/util/units.ts';
import { EDGES } from '../draw.ts';
import type { Draw } from '../draw.ts';
import type { FuzzSubject, FuzzTarget } from '../target.ts';

const SIZE = MIB;
const MOST_READS = 1000;

/** The disk with right checksums in its primary header, as far as it has one. */
function seal(disk: Buffer, block: number): Buffer {
  const header = disk.subarray(block, 2 * block);
  const start = Number(header.readBigUInt64LE(72)) * block;
  const length = header.readUInt32LE(80) * header.readUInt32LE(84);
  const size = header.readUInt32LE(12);
  if (start + length > disk.length || size < 92 || size > block) return disk;
  header.writeUInt32LE(crc32(disk.subarray(start, start + length)), 88);
  header.writeUInt32LE(0, 16);
  header.writeUInt32LE(crc32(header.subarray(0, size)), 16);
  return disk;
}

async function check(disk: Buffer, logicalBlockSize: number): Promise<void> {
  let reads = 0;
  const table = await readPartitionTable({ size: disk.length, logicalBlockSize }, async (offset, length) => {
    reads++;
    assert(offset >= 0 && length > 0 && offset + length <= disk.length, 'reads lie in the disk');
    return Uint8Array.from(disk.subarray(offset, offset + length));
  });
  assert(reads < MOST_READS, 'a table is read in a few reads');
  const sorted = (table?.partitions ?? []).toSorted((a, b) => a.offset - b.offset);
  for (const [index, { offset, length, label }] of sorted.entries()) {
    assert(offset >= 0 && length > 0 && offset + length <= disk.length, 'a partition lies in the disk');
    assert(offset % logicalBlockSize === 0 && length % logicalBlockSize === 0, 'a partition lies on blocks');
    assert(index === 0 || sorted[index - 1]!.offset + sorted[index - 1]!.length <= offset, 'no two overlap');
    assert(!/[\p{Cc}\p{Cf}]/u.test(label), 'a label can be printed');
  }
  const words = (table?.warnings ?? []).join('\n');
  assert(words.length < MIB, 'warnings are few');
}

const SUBJECT: FuzzSubject = {
  async run(input) {
    for (const logicalBlockSize of [512, 4096]) {
      const disk = Buffer.alloc(SIZE);
      disk.set(input.subarray(0, SIZE));
      await check(disk, logicalBlockSize);
      for (const block of [512, 4096]) await check(seal(Buffer.from(disk), block), logicalBlockSize);
    }
  },
  async close() {},
};

function gpt(draw: Draw, disk: Buffer, block: number): void {
  const header = disk.subarray(block);
  header.write('EFI PART', 'latin1');
  header.writeUInt32LE(0x10000, 8);
  header.writeUInt32LE(draw.chance(0.9) ? 92 : draw.one(EDGES), 12);
  header.writeBigUInt64LE(1n, 24);
  header.writeBigUInt64LE(BigInt(draw.one([SIZE / block - 1, 1, ...EDGES])), 32);
  header.writeBigUInt64LE(BigInt(draw.one([6, 34, 0])), 40);
  header.writeBigUInt64LE(BigInt(draw.one([SIZE / block - 6, ...EDGES])), 48);
  header.writeBigUInt64LE(BigInt(draw.chance(0.9) ? 2 : draw.one(EDGES)), 72);
  header.writeUInt32LE(draw.chance(0.9) ? draw.between(1, 64) : draw.one(EDGES), 80);
  header.writeUInt32LE(draw.one([128, 128, 128, 256, 4096, 0, draw.one(EDGES)]), 84);
  for (let at = 2 * block; at + 128 <= 2 * block + 16 * 128; at += 128) {
    if (draw.chance(0.4)) continue;
    disk[at] = 1;
    const first = draw.below(SIZE / block);
    const number = (usual: number): bigint => BigInt(draw.chance(0.9) ? usual : draw.one(EDGES));
    disk.writeBigUInt64LE(number(first), at + 32);
    disk.writeBigUInt64LE(number(first + draw.below(64)), at + 40);
    disk.set(draw.noise(draw.below(72)), at + 56);
  }
}

/** Boot records at 0 and wherever a chain may lead. */
function mbr(draw: Draw, disk: Buffer): void {
  for (const record of [0, ...draw.list(8, () => draw.below(64))]) {
    const at = record * 512;
    disk.writeUInt16BE(0x55aa, at + 510);
    for (let entry = at + 446; entry < at + 510; entry += 16) {
      if (draw.chance(0.4)) continue;
      disk[entry] = draw.one([0, 0, 0, 0x80]);
      disk[entry + 4] = draw.one([0x83, 0x05, 0x0f, 0x85, 0xee, 0]);
      disk.writeUInt32LE(draw.chance(0.9) ? draw.below(64) : draw.one(EDGES), entry + 8);
      disk.writeUInt32LE(draw.chance(0.9) ? draw.between(1, 256) : draw.one(EDGES), entry + 12);
    }
  }
}

function generate(draw: Draw): Uint8Array {
  const disk = Buffer.alloc(64 * 512);
  if (draw.chance(0.6)) mbr(draw, disk);
  if (draw.chance(0.6)) gpt(draw, disk, draw.one([512, 4096]));
  return disk;
}

export const partitionTable: FuzzTarget = { name: 'partition-table', generate, open: async () => SUBJECT };
