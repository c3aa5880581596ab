/** Sectors that describe themselves: whoever reads one can tell whether it is whole, where it belongs, which
 *  write it comes from and when that was.
 *
 *  512 bytes, little-endian: 0 CRC-32 of the rest, 4 sequence number u32, 8 offset f64, 16 time f64 (ms since
 *  1970), then bytes that follow from the sequence number. */

import { crc32 } from 'node:zlib';

export const SECTOR = 512;

/** Sectors for [offset, offset + length), all of one write. */
export function sectorsOf(sequence: number, offset: number, length: number): Buffer {
  const data = Buffer.alloc(length);
  for (let at = 0; at < length; at += SECTOR) {
    data.fill((sequence * 31 + at / SECTOR) & 0xff, at + 24, at + SECTOR);
    data.writeUInt32LE(sequence, at + 4);
    data.writeDoubleLE(offset + at, at + 8);
    data.writeDoubleLE(Date.now(), at + 16);
    data.writeUInt32LE(crc32(data.subarray(at + 4, at + SECTOR)), at);
  }
  return data;
}

/** The sequence number of each sector. Throws for one that is damaged or in the wrong place. */
export function sequencesIn(data: Buffer, offset: number, where: string): number[] {
  const sequences: number[] = [];
  for (let at = 0; at < data.length; at += SECTOR) {
    const place = `${where}: sector at ${offset + at}`;
    const sequence = data.readUInt32LE(at + 4);
    if (data.readUInt32LE(at) !== crc32(data.subarray(at + 4, at + SECTOR))) throw new Error(`${place} is damaged`);
    if (data.readDoubleLE(at + 8) !== offset + at) {
      throw new Error(`${place} belongs at ${data.readDoubleLE(at + 8)} (sequence ${sequence})`);
    }
    sequences.push(sequence);
  }
  return sequences;
}
