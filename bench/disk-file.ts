/** Files that disks are made of, of data that does not compress. */

import { randomFillSync } from 'node:crypto';
import fs from 'node:fs';

const MIB = 1024 * 1024;
const PART_BYTES = 16 * MIB;

/** Writes parts of random data, and leaves a hole of the same length after each where `holes` is set. */
function makeFile(file: string, bytes: number, holes: boolean): void {
  const data = randomFillSync(Buffer.alloc(PART_BYTES));
  const stride = holes ? 2 * PART_BYTES : PART_BYTES;
  const fd = fs.openSync(file, 'w');
  fs.ftruncateSync(fd, bytes);
  for (let at = 0; at < bytes; at += stride) fs.writeSync(fd, data, 0, Math.min(PART_BYTES, bytes - at), at);
  fs.fsyncSync(fd);
  fs.closeSync(fd);
}

/** Without holes, and read once: whoever comes first reads no slower than those after it. */
export function makeFullDisk(file: string, bytes: number): void {
  makeFile(file, bytes, false);
  const part = Buffer.alloc(PART_BYTES);
  const fd = fs.openSync(file, 'r');
  for (let at = 0; at < bytes; at += PART_BYTES) fs.readSync(fd, part, 0, PART_BYTES, at);
  fs.closeSync(fd);
}

/** Half data, half holes, in turns of 16 MiB. */
export function makeHalfFullDisk(file: string, bytes: number): void {
  makeFile(file, bytes, true);
}
