/** Compares an NBD export with a file, byte for byte: by qemu-img where it is installed, a program that shares
 *  nothing with ours, else by reading both. */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';

import { findProgram } from '../scripts/debian.mjs';
import { MIB } from '../src/util/units.ts';
import { connect } from './nbd.ts';

const QEMU_IMG = findProgram('qemu-img');

/** What compares here, for the reader. */
export const COMPARER = QEMU_IMG === undefined ? 'by reading both' : 'by qemu-img compare';

async function sameByReading(uri: string, file: string): Promise<boolean> {
  const disk = await connect(uri);
  const fd = fs.openSync(file, 'r');
  try {
    if (fs.fstatSync(fd).size !== disk.size) return false;
    const ours = Buffer.alloc(MIB);
    const theirs = Buffer.alloc(MIB);
    for (let at = 0; at < disk.size; at += MIB) {
      const length = fs.readSync(fd, ours, 0, MIB, at);
      await disk.read(at, theirs.subarray(0, length));
      if (ours.compare(theirs, 0, length, 0, length) !== 0) return false;
    }
    return true;
  } finally {
    fs.closeSync(fd);
    await disk.close();
  }
}

export async function isSame(uri: string, file: string): Promise<boolean> {
  if (QEMU_IMG === undefined) return sameByReading(uri, file);
  const { status, stderr } = spawnSync(QEMU_IMG, ['compare', '-f', 'raw', '-F', 'raw', uri, file], {
    encoding: 'utf8',
  });
  if (status !== 0 && status !== 1) throw new Error(`qemu-img compare ${uri}: ${stderr}`);
  return status === 0;
}
