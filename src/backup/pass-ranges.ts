/** The work of a pass over a restore point's file, range by range, in plain calls: for a thread that has nothing else to
 *  do, or for a file so small that nobody waits. Several threads may do one job: each takes the next range that nobody has. */

import fs from 'node:fs';
import { beginWriteback } from '../io/sys.ts';
import { RangeChecksums } from '../util/checksum.ts';
import { toBlksnapError } from '../util/errors.ts';
import { KIB } from '../util/units.ts';
import { isZero } from '../util/zeroes.ts';
import type { FileSums } from './sums.ts';

/** Read, added up and written before it leaves the processor's cache. */
const PIECE_BYTES = 64 * KIB;

/** Numbers that the threads of a job share. */
const NEXT = 0;
const STOPPED = 1;
const READ = 2;
const COPIED = 3;

/** What of the file is the disk's. */
export interface CopyJob {
  /** Open for writing, reads as zeros. */
  readonly fd: number;
  readonly path: string;
  /** Triples by place in the file, none over another: place in the file, offset of the disk, length. */
  readonly runs: Float64Array;
  /** Each range is on its way to stable storage when it is written: the sync at the end is short then. */
  readonly writesBackAtOnce: boolean;
}

export interface PassJob {
  readonly fd: number;
  readonly sums: FileSums;
  readonly copy: CopyJob | null;
  readonly shared: BigInt64Array;
}

/** Numbers of ranges. */
export interface Findings {
  /** Not what was written, or not to be read. */
  readonly wrong: number[];
  /** Those of them that could not be read, and so were not copied. */
  readonly unreadable: number[];
}

/** The numbers of a job, before anybody works on it. */
export function sharedNumbers(): BigInt64Array {
  return new BigInt64Array(new SharedArrayBuffer(4 * 8));
}

/** Makes all threads end after their piece. */
export function stop({ shared }: PassJob): void {
  Atomics.store(shared, STOPPED, 1n);
}

/** Bytes of the file, and of them for the disk, that have been dealt with. */
export function progressOf({ shared }: PassJob): { readonly read: number; readonly copied: number } {
  return { read: Number(Atomics.load(shared, READ)), copied: Number(Atomics.load(shared, COPIED)) };
}

/** Takes ranges until none is left, or `most` are done; true when none is left. Errors: what writing fails with. */
export function passRanges(job: PassJob, findings: Findings, most = Infinity): boolean {
  const { sums, shared } = job;
  const buffer = new Uint8Array(PIECE_BYTES);
  for (let done = 0; done < most; done++) {
    const index = Number(Atomics.add(shared, NEXT, 1n));
    if (index >= sums.checksums.length || Atomics.load(shared, STOPPED) !== 0n) return true;
    const checksum = passRange(job, index, buffer);
    if (checksum === null) findings.unreadable.push(index);
    if (checksum !== sums.checksums[index]) findings.wrong.push(index);
  }
  return false;
}

/** The checksum of a range; null when it cannot be read, which is damage too. */
function passRange({ fd, sums, copy, shared }: PassJob, index: number, buffer: Uint8Array): string | null {
  const start = index * sums.rangeBytes;
  const end = Math.min(start + sums.rangeBytes, sums.fileBytes);
  const whole = new RangeChecksums(sums.rangeBytes);
  let run = copy === null ? 0 : firstRunBehind(copy.runs, start);
  for (let at = start; at < end; at += PIECE_BYTES) {
    if (Atomics.load(shared, STOPPED) !== 0n) return null;
    const piece = buffer.subarray(0, Math.min(PIECE_BYTES, end - at));
    if (!readPiece(fd, piece, at)) return null;
    whole.update(piece);
    if (copy !== null) run = writePiece(copy, { run, piece, at, shared });
    Atomics.add(shared, READ, BigInt(piece.length));
  }
  if (copy?.writesBackAtOnce === true) beginRangeWriteback(copy, start, end);
  return whole.finish()[0]!;
}

/** What a range of the file held of the disk. What fails of it, the sync at the end tells. */
function beginRangeWriteback({ fd, runs }: CopyJob, start: number, end: number): void {
  for (let at = firstRunBehind(runs, start) * 3; runs[at]! < end; at += 3) {
    const from = Math.max(runs[at]!, start);
    const to = Math.min(runs[at]! + runs[at + 2]!, end);
    beginWriteback(fd, runs[at + 1]! + from - runs[at]!, to - from);
  }
}

function readPiece(fd: number, piece: Uint8Array, at: number): boolean {
  try {
    for (let done = 0; done < piece.length;) {
      const count = fs.readSync(fd, piece, done, piece.length - done, at + done);
      if (count === 0) return false;
      done += count;
    }
    return true;
  } catch {
    return false;
  }
}

/** The first run that ends behind a place of the file. */
function firstRunBehind(runs: Float64Array, place: number): number {
  let low = 0;
  for (let high = runs.length / 3; low < high;) {
    const middle = (low + high) >> 1;
    if (runs[middle * 3]! + runs[middle * 3 + 2]! > place) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Writes what the piece at `at` of the file holds of the disk, from the run `run` on. Returns the first run that goes on behind it. */
function writePiece(
  copy: CopyJob,
  {
    run,
    piece,
    at,
    shared,
  }: { run: number; readonly piece: Uint8Array; readonly at: number; readonly shared: BigInt64Array },
): number {
  const { runs } = copy;
  for (const end = at + piece.length; ; run++) {
    const place = runs[run * 3];
    if (place === undefined || place >= end) return run;
    const runEnd = place + runs[run * 3 + 2]!;
    const from = Math.max(place, at);
    const data = piece.subarray(from - at, Math.min(runEnd, end) - at);
    if (!isZero(data)) writeData(copy, data, runs[run * 3 + 1]! + from - place);
    Atomics.add(shared, COPIED, BigInt(data.length));
    if (runEnd > end) return run;
  }
}

function writeData({ fd, path }: CopyJob, data: Uint8Array, offset: number): void {
  try {
    for (let done = 0; done < data.length;) done += fs.writeSync(fd, data, done, data.length - done, offset + done);
  } catch (cause) {
    throw toBlksnapError(cause, `Cannot write ${data.length} bytes at offset ${offset} of "${path}"`);
  }
}
