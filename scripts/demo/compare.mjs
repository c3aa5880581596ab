/** Compares an NBD export with a file, byte for byte: with qemu-img where it is installed, a program that shares
 *  nothing with ours, else by reading both. */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';

import { findProgram } from '../debian.mjs';
import { connect } from './nbd.mjs';

const PIECE_BYTES = 1024 * 1024;

/** What compares here, for the reader. */
export const COMPARER = findProgram('qemu-img') === undefined ? 'by reading both' : 'by qemu-img compare';

/** @param {string} uri
 *  @param {string} file */
async function sameByReading(uri, file) {
  const disk = await connect(uri);
  const fd = fs.openSync(file, 'r');
  try {
    if (fs.fstatSync(fd).size !== disk.size) return false;
    const piece = Buffer.alloc(PIECE_BYTES);
    for (let at = 0; at < disk.size; at += PIECE_BYTES) {
      const length = fs.readSync(fd, piece, 0, PIECE_BYTES, at);
      if (!piece.subarray(0, length).equals(await disk.read(at, length))) return false;
    }
    return true;
  } finally {
    fs.closeSync(fd);
    await disk.close();
  }
}

/** @param {string} uri
 *  @param {string} file */
export async function isSame(uri, file) {
  const qemuImg = findProgram('qemu-img');
  if (qemuImg === undefined) return sameByReading(uri, file);
  const { status, stderr } = spawnSync(qemuImg, ['compare', '-f', 'raw', '-F', 'raw', uri, file], { encoding: 'utf8' });
  if (status !== 0 && status !== 1) throw new Error(`qemu-img compare ${uri}: ${stderr}`);
  return status === 0;
}
