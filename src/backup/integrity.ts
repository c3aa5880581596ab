/** Finds damage in the files of restore points: what is missing, of the wrong size, or not what was written. */

import path from 'node:path';
import { fileSize } from '../util/durable.ts';
import { passFile } from './file-pass.ts';
import type { PassOptions } from './file-pass.ts';
import { chainOf } from './manifest.ts';
import type { Manifest, RestorePoint } from './manifest.ts';
import { alignOut } from './ranges.ts';
import type { ByteRange } from './ranges.ts';
import { pointFile, sumsFile } from './repository.ts';
import { readSums } from './sums.ts';
import type { FileSums } from './sums.ts';

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

export interface ReadThrough extends Omit<PassOptions, 'sums'> {
  /** Hears that not all of the file was gone through: what was to be copied may not have been. */
  readonly onIncomplete?: () => void;
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
  if (damage.length > 0) io.onIncomplete?.();
  if (typeof sums === 'string' || problem === 'is missing') return damage;
  const { wrong, unreadable } = await passFile(file, { ...io, sums });
  for (const range of joined(wrong, sums))
    damage.push({ ...base, file, problem: 'its content changed (checksum mismatch)', ...range });
  if (unreadable.length > 0) io.onIncomplete?.();
  return damage;
}

/** The ranges of these numbers, neighbours joined. */
function joined(numbers: readonly number[], { rangeBytes, fileBytes }: FileSums): ByteRange[] {
  return alignOut(
    numbers.map((index) => ({ offset: index * rangeBytes, length: rangeBytes })),
    1,
    fileBytes,
  );
}
