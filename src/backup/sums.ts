/** The sums file of a restore point: the checksum of each range of its qcow2 file, as text.
 *
 *      blksnap-sums 1 <file bytes> <range bytes>
 *      <xxHash64 of the first range, 16 hexadecimal digits>
 *      …
 *
 *  Its own checksum is in its name and in the manifest, so it is found, and trusted, by that. */

import path from 'node:path';
import { RangeChecksums } from '../util/checksum.ts';
import { syncDirectory } from '../util/directories.ts';
import { writeDurably } from '../util/durable.ts';
import { readText } from '../util/read-text.ts';
import { KIB, MIB } from '../util/units.ts';
import type { RestorePoint } from './manifest.ts';
import { sumsFile } from './repository.ts';

const HEADER = /^blksnap-sums 1 (\d+) (\d+)$/;
/** The sums of a file of 66 TB. */
const SUMS_LIMIT = 256 * MIB;
const CHECKSUM = /^[0-9a-f]{16}$/;
/** Of the ranges that are believed; ours have CHECKSUM_RANGE_BYTES. */
const SMALLEST_RANGE = 64 * KIB;
const LARGEST_RANGE = 16 * MIB;

export interface FileSums {
  readonly fileBytes: number;
  readonly rangeBytes: number;
  /** In order; the last range may be short. */
  readonly checksums: readonly string[];
}

/** Writes the sums of a point's file and returns their own checksum. Nothing names the file yet: that
 *  is the manifest's part. */
export function writeSums(diskPath: string, id: string, sums: FileSums): string {
  const text = [`blksnap-sums 1 ${sums.fileBytes} ${sums.rangeBytes}`, ...sums.checksums, ''].join('\n');
  const checksum = checksumOf(text);
  const file = sumsFile(diskPath, id, checksum);
  writeDurably(file, text);
  syncDirectory(path.dirname(file));
  return checksum;
}

/** The sums of a point's file, or in words why they cannot be had. */
export function readSums(diskPath: string, point: Pick<RestorePoint, 'id' | 'sums' | 'fileBytes'>): FileSums | string {
  const { id, sums: checksum, fileBytes } = point;
  const file = sumsFile(diskPath, id, checksum);
  let text: string;
  try {
    text = readText(file, SUMS_LIMIT);
  } catch (cause) {
    return (cause as NodeJS.ErrnoException).code === 'ENOENT'
      ? 'it is missing'
      : `it cannot be read: ${(cause as Error).message}`;
  }
  if (text === '') return 'it is empty';
  if (checksumOf(text) !== checksum) return 'its own checksum does not match';
  const [header, ...checksums] = text.trimEnd().split('\n');
  const match = HEADER.exec(header ?? '');
  if (match === null) return 'its first line is not one of a sums file';
  const sums = { fileBytes: Number(match[1]), rangeBytes: Number(match[2]), checksums };
  return covers(sums, fileBytes) ? sums : `it does not cover the ${fileBytes} bytes of the point's file`;
}

/** Nothing but what it says may be left unread when all ranges are found right. */
function covers({ fileBytes, rangeBytes, checksums }: FileSums, expectedBytes: number): boolean {
  if (fileBytes !== expectedBytes || rangeBytes < SMALLEST_RANGE || rangeBytes > LARGEST_RANGE) return false;
  return checksums.length === Math.ceil(fileBytes / rangeBytes) && checksums.every((sum) => CHECKSUM.test(sum));
}

function checksumOf(text: string): string {
  const bytes = Buffer.from(text);
  const whole = new RangeChecksums(bytes.length);
  whole.update(bytes);
  return whole.finish()[0]!;
}
