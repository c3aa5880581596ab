/** What of the files of a chain of restore points is the disk's: read in the order of the files, each of them once, they
 *  give the disk as well as read through qcow2. */

import fs from 'node:fs';
import type { Qcow2Device } from '../qcow2/device.ts';
import { checkGoingOn } from '../util/cancel.ts';
import { GIB } from '../util/units.ts';

/** Of the disk, looked up before others have a turn. */
const STEP_BYTES = GIB;
/** In all files: a bound on memory. A disk of 64 GiB has no more, however its chain came about. */
const MOST_RUNS = 2 ** 20;

interface Run {
  /** In the file. */
  readonly place: number;
  /** Of the disk. */
  readonly offset: number;
  length: number;
}

/** For each of the files the triples that a pass over it takes (`CopyJob`). Null where they do not say it all: something
 *  is compressed, lies in another file or twice in one, or is damaged; or there are too many. */
export async function dataRuns(
  device: Qcow2Device,
  files: readonly string[],
  signal: AbortSignal | undefined,
): Promise<Float64Array[] | null> {
  const runs = new Map(files.map((file) => [fs.realpathSync(file), [] as Run[]]));
  const runsOf = new Map<string, Run[] | undefined>();
  let left = MOST_RUNS;
  const add = ({ file, ...run }: Run & { readonly file: string }): void => {
    if (!runsOf.has(file)) runsOf.set(file, runs.get(fs.realpathSync(file)));
    const list = runsOf.get(file);
    const last = list?.at(-1);
    if (last !== undefined && last.place + last.length === run.place && last.offset + last.length === run.offset)
      last.length += run.length;
    else if (left-- > 0) list?.push(run);
  };
  for (let offset = 0; offset < device.size; offset += STEP_BYTES) {
    checkGoingOn(signal);
    if (!(await device.locate(offset, Math.min(STEP_BYTES, device.size - offset), add)) || left < 0) return null;
    await new Promise<void>((resolve) => void setImmediate(resolve));
  }
  const known = [...runsOf.values()].every((list) => list !== undefined);
  const lists = [...runs.values()].map((list) => list.sort((a, b) => a.place - b.place));
  return known && lists.every(isDisjoint) ? lists.map(asTriples) : null;
}

function isDisjoint(runs: readonly Run[]): boolean {
  return runs.every(({ place }, index) => index === 0 || runs[index - 1]!.place + runs[index - 1]!.length <= place);
}

/** In memory that threads share. */
function asTriples(runs: readonly Run[]): Float64Array {
  const triples = new Float64Array(new SharedArrayBuffer(runs.length * 3 * 8));
  for (const [index, { place, offset, length }] of runs.entries()) triples.set([place, offset, length], index * 3);
  return triples;
}
