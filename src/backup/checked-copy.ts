/** Copies a restore point to a file that nobody sees yet, and checks what it rests on by the same reads. */

import fs from 'node:fs';
import type { BioPool } from '../block/bio.ts';
import { onTmpfs } from '../io/files.ts';
import type { Reactor } from '../io/reactor.ts';
import { ffiAvailable } from '../io/sys.ts';
import type { CopyProgress } from './copy.ts';
import { dataRuns } from './data-runs.ts';
import { checkPointFile } from './integrity.ts';
import type { Damage } from './integrity.ts';
import type { RestorePoint } from './manifest.ts';
import { openPoint } from './open-point.ts';
import type { OpenedPoint } from './open-point.ts';
import { diskPathOf, pointFile } from './repository.ts';

interface CheckedCopyJob {
  readonly point: RestorePoint;
  /** The point and what it rests on. */
  readonly chain: readonly RestorePoint[];
  /** As long as the disk, and zero. */
  readonly file: string;
}

interface CheckedCopyOptions {
  readonly directory: string;
  readonly disk: string;
  readonly reactor: Reactor;
  readonly pool: BioPool;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?:
    | ((progress: Pick<CopyProgress, 'bytesDone' | 'bytesTotal' | 'seconds'> & { readonly phase: 'copy' }) => void)
    | undefined;
}

/** The damage found, which was copied as it is; `progress` is null when not everything could be copied. Null, and nothing is
 *  done, where the chain's files do not hold the disk's data as it is, or cannot be opened. Errors: those of writing, ECANCELED. */
export async function copyWhileChecking(
  { point, chain, file }: CheckedCopyJob,
  options: CheckedCopyOptions,
): Promise<{ readonly damage: readonly Damage[]; readonly progress: CopyProgress | null } | null> {
  const diskPath = diskPathOf(options.directory, options.disk);
  const files = chain.map(({ id }) => pointFile(diskPath, id));
  const runs = await runsOf(point, files, options);
  if (runs === null) return null;
  const meter = new CopyMeter(point.size, runs, options.onProgress);
  const damage: Damage[] = [];
  let complete = true;
  const writesBackAtOnce = ffiAvailable() && !onTmpfs(file);
  const fd = fs.openSync(file, 'r+');
  try {
    for (const [index, link] of chain.entries()) {
      const copy = { fd, path: file, runs: runs[index]!, writesBackAtOnce };
      const onIncomplete = (): void => void (complete = false);
      const io = { copy, onIncomplete, onBytes: meter.add, signal: options.signal };
      damage.push(...(await checkPointFile(diskPath, link, io)));
    }
  } finally {
    fs.closeSync(fd);
  }
  return { damage, progress: complete ? meter.progress : null };
}

async function runsOf(
  point: RestorePoint,
  files: readonly string[],
  options: CheckedCopyOptions,
): Promise<Float64Array[] | null> {
  let opened: OpenedPoint;
  try {
    opened = await openPoint({ directory: options.directory, disk: options.disk, point: point.id }, options);
  } catch {
    return null; // The check will say more.
  }
  try {
    return await dataRuns(opened.device, files, options.signal);
  } finally {
    await opened.device.close();
  }
}

/** Turns what a pass tells into the progress of a copy. What no file holds is zero, and done. */
class CopyMeter {
  readonly #size: number;
  readonly #onProgress: CheckedCopyOptions['onProgress'];
  readonly #startMs = performance.now();
  readonly #zeroes: number;
  #copied = 0;

  constructor(size: number, runs: readonly Float64Array[], onProgress: CheckedCopyOptions['onProgress']) {
    this.#size = size;
    this.#onProgress = onProgress;
    let data = 0;
    for (const triples of runs) for (let at = 2; at < triples.length; at += 3) data += triples[at]!;
    this.#zeroes = size - data;
  }

  readonly add = (_bytes: number, copied: number): void => {
    this.#copied += copied;
    const { bytesDone, bytesTotal, seconds } = this.progress;
    this.#onProgress?.({ phase: 'copy', bytesDone, bytesTotal, seconds });
  };

  get progress(): CopyProgress {
    return {
      bytesDone: this.#zeroes + this.#copied,
      bytesTotal: this.#size,
      bytesRead: this.#copied,
      bytesStored: this.#copied,
      seconds: (performance.now() - this.#startMs) / 1000,
    };
  }
}
