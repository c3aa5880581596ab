/** Finds damage in the files of restore points: what is missing, of the wrong size, or not what was written. */

import fs from 'node:fs';
import path from 'node:path';
import { NO_MEMORY } from '../io/arena.ts';
import { borrow, readWhole } from '../io/files.ts';
import type { Reactor } from '../io/reactor.ts';
import { RangeChecksums } from '../util/checksum.ts';
import { checkGoingOn } from '../util/cancel.ts';
import { fileSize } from '../util/durable.ts';
import { chainOf } from './manifest.ts';
import type { Manifest, RestorePoint } from './manifest.ts';
import { alignOut } from './ranges.ts';
import type { ByteRange } from './ranges.ts';
import { pointFile, sumsFile } from './repository.ts';
import { readSums } from './sums.ts';
import type { FileSums } from './sums.ts';

/** How many ranges are read at a time, as far as memory is left. */
const RANGES_AT_ONCE = 3;

export interface Damage {
  readonly disk: string;
  /** The point whose file is damaged. */
  readonly point: string;
  readonly file: string;
  /** In words. */
  readonly problem: string;
  /** The damaged bytes of the file, where they can be told. */
  readonly offset?: number;
  readonly length?: number;
}

export interface ReadThrough {
  readonly reactor: Reactor;
  /** Hears how many more bytes were read. */
  readonly onBytes?: ((bytes: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** `"…/x.qcow2", bytes 4194304 to 8388607: checksum mismatch`. */
export function describeDamage(damage: Damage): string {
  const where =
    damage.offset === undefined ? '' : `, bytes ${damage.offset} to ${damage.offset + (damage.length ?? 1) - 1}`;
  return `"${damage.file}"${where}: ${damage.problem}`;
}

/** What can be seen, without reading data, to be wrong with a point or what it rests on; null when nothing. */
export function visibleDamage(diskPath: string, manifest: Manifest, point: RestorePoint): string | null {
  for (const link of chainOf(manifest, point)) {
    const problem = sizeProblem(diskPath, link);
    if (problem !== null) return `restore point ${link.id} is damaged: its file ${problem}`;
  }
  return null;
}

function sizeProblem(diskPath: string, point: RestorePoint): string | null {
  const size = fileSize(pointFile(diskPath, point.id));
  if (size === null) return 'is missing';
  return size === point.fileBytes ? null : `has ${size} bytes instead of ${point.fileBytes}`;
}

/** Reads a point's own file whole and compares it with its sums. */
export async function checkPointFile(diskPath: string, point: RestorePoint, io: ReadThrough): Promise<Damage[]> {
  const file = pointFile(diskPath, point.id);
  const base = { disk: path.basename(diskPath), point: point.id };
  const problem = sizeProblem(diskPath, point);
  const sums = readSums(diskPath, point);
  const damage: Damage[] = [];
  if (typeof sums === 'string') damage.push({ ...base, file: sumsFile(diskPath, point.id, point.sums), problem: sums });
  if (problem !== null) damage.push({ ...base, file, problem });
  if (typeof sums === 'string' || problem === 'is missing') return damage;
  for (const range of await changedRanges(file, sums, io))
    damage.push({ ...base, file, problem: 'its content changed (checksum mismatch)', ...range });
  return damage;
}

/** The ranges whose checksum is not the stored one, neighbours joined. */
async function changedRanges(file: string, sums: FileSums, io: ReadThrough): Promise<ByteRange[]> {
  const { arena } = io.reactor;
  const buffers = [await borrow(arena, sums.rangeBytes)];
  // More only where there is plenty: whoever restores needs memory too.
  while (buffers.length < RANGES_AT_ONCE && arena.lentBytes < arena.size / 4) {
    const at = arena.allocate(sums.rangeBytes);
    if (at === NO_MEMORY) break;
    buffers.push(at);
  }
  const fd = fs.openSync(file, 'r');
  const wrong: number[] = [];
  const indices = sums.checksums.keys();
  /** Reads one range after another, of those that nobody has read; the others are read while this one is looked at. */
  const reader = async (at: number): Promise<void> => {
    for (const index of indices) {
      checkGoingOn(io.signal);
      const range = rangeOf(sums, index);
      if ((await checksumAt({ fd, path: file }, at, range, io)) !== sums.checksums[index]) wrong.push(index);
    }
  };
  try {
    // Not `all`: the memory and the file may be given back only when every read has ended.
    for (const outcome of await Promise.allSettled(buffers.map(reader)))
      if (outcome.status === 'rejected') throw outcome.reason;
  } finally {
    fs.closeSync(fd);
    for (const at of buffers) arena.release(at);
  }
  return alignOut(
    wrong.map((index) => rangeOf(sums, index)),
    1,
    sums.fileBytes,
  );
}

function rangeOf(sums: FileSums, index: number): ByteRange {
  const offset = index * sums.rangeBytes;
  return { offset, length: Math.min(sums.rangeBytes, sums.fileBytes - offset) };
}

/** The checksum of a range; null when it cannot be read, which is damage too. */
async function checksumAt(
  file: { readonly fd: number; readonly path: string },
  at: number,
  range: ByteRange,
  io: ReadThrough,
): Promise<string | null> {
  let count: number;
  try {
    count = await readWhole(io.reactor, file, at, range.length, range.offset);
  } catch {
    return null;
  }
  io.onBytes?.(range.length);
  if (count < range.length) return null;
  const whole = new RangeChecksums(range.length);
  whole.update(io.reactor.arena.bytes.subarray(at, at + count));
  return whole.finish()[0]!;
}
