/** Checks that every restore point can be restored: its files are there, have the content that was
 *  written, and are sound as qcow2 chains. Changes nothing, needs no lock. */

import path from 'node:path';
import type { BioPool } from '../block/bio.ts';
import type { Reactor } from '../io/reactor.ts';
import { toBlksnapError } from '../util/errors.ts';
import { checkPointFile } from './integrity.ts';
import type { Damage } from './integrity.ts';
import type { Manifest, RestorePoint } from './manifest.ts';
import { openPoint } from './open-point.ts';
import { diskNames, diskPathOf, pointFile, readManifest } from './repository.ts';

interface VerifyProgress {
  readonly bytesDone: number;
  readonly bytesTotal: number;
  readonly seconds: number;
}

export interface VerifyOptions {
  readonly reactor: Reactor;
  readonly directory: string;
  /** Default: every disk that has backups there. */
  readonly disk?: string | undefined;
  readonly pool: BioPool;
  readonly onProgress?: ((progress: VerifyProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

interface PointReport {
  readonly disk: string;
  readonly point: string;
  /** False when its own files or those it rests on are damaged. */
  readonly restorable: boolean;
}

export interface VerifyReport {
  readonly sound: boolean;
  readonly points: readonly PointReport[];
  readonly damage: readonly Damage[];
  readonly bytesRead: number;
}

/** Damage is reported, not thrown. Errors: ENOENT when there are no such backups, ECANCELED. */
export async function verify(options: VerifyOptions): Promise<VerifyReport> {
  const disks = options.disk === undefined ? diskNames(options.directory) : [options.disk];
  const damage: Damage[] = [];
  const manifests = disks.flatMap((disk) => readable(options.directory, disk, damage));
  const progress = new Progress(manifests, options.onProgress);
  const points: PointReport[] = [];
  for (const manifest of manifests) {
    const broken = new Set<string>();
    for (const point of manifest.points) {
      const found = await checkPoint(manifest.disk, point, broken, { ...options, onBytes: progress.add });
      if (found === 'gone') continue;
      damage.push(...found);
      if (found.length > 0 || (point.parent !== null && broken.has(point.parent))) broken.add(point.id);
      points.push({ disk: manifest.disk, point: point.id, restorable: !broken.has(point.id) });
    }
  }
  return { sound: damage.length === 0, points, damage, bytesRead: progress.bytesDone };
}

/** The disk's manifest; a damaged one is reported, and its points cannot be told. */
function readable(directory: string, disk: string, damage: Damage[]): Manifest[] {
  try {
    return [readManifest(directory, disk)];
  } catch (cause) {
    const error = toBlksnapError(cause);
    if (error.code !== 'EBADMSG') throw error;
    damage.push({
      disk,
      point: '',
      file: path.join(diskPathOf(directory, disk), 'manifest.json'),
      problem: error.message,
    });
    return [];
  }
}

class Progress {
  readonly #bytesTotal: number;
  readonly #report: VerifyOptions['onProgress'];
  readonly #startMs = performance.now();
  bytesDone = 0;

  constructor(manifests: readonly Manifest[], report: VerifyOptions['onProgress']) {
    this.#bytesTotal = manifests.flatMap(({ points }) => points).reduce((sum, point) => sum + point.fileBytes, 0);
    this.#report = report;
  }

  readonly add = (bytes: number): void => {
    this.bytesDone += bytes;
    this.#report?.({
      bytesDone: this.bytesDone,
      bytesTotal: this.#bytesTotal,
      seconds: (performance.now() - this.#startMs) / 1000,
    });
  };
}

type CheckContext = VerifyOptions & { readonly onBytes: (bytes: number) => void };

/** A point's damage; `gone` when it has been pruned meanwhile. `broken`: the points known to be damaged. */
async function checkPoint(
  disk: string,
  point: RestorePoint,
  broken: ReadonlySet<string>,
  context: CheckContext,
): Promise<Damage[] | 'gone'> {
  const diskPath = diskPathOf(context.directory, disk);
  const damage = await checkPointFile(diskPath, point, { onBytes: context.onBytes, signal: context.signal });
  const parentBroken = point.parent !== null && broken.has(point.parent);
  if (damage.length === 0 && !parentBroken) damage.push(...(await checkStructure(disk, point, context)));
  if (damage.length === 0) return damage;
  // A prune may have removed or rewritten the point since the manifest was read.
  const now = readManifest(context.directory, disk).points.find((other) => other.id === point.id);
  if (now === undefined) return 'gone';
  return now.sums === point.sums ? damage : checkPoint(disk, now, broken, context);
}

/** Opens the chain as restore would, and walks the tables of the point's own file. */
async function checkStructure(disk: string, point: RestorePoint, context: CheckContext): Promise<Damage[]> {
  const complaint = (problem: string): Damage[] => [
    { disk, point: point.id, file: pointFile(diskPathOf(context.directory, disk), point.id), problem },
  ];
  try {
    const { device } = await openPoint({ directory: context.directory, disk, point: point.id }, context);
    try {
      if (device.size !== point.size) return complaint(`holds a disk of ${device.size} bytes instead of ${point.size}`);
      for (let offset = 0; offset < device.size;) {
        for (const extent of await device.ownExtents(offset, device.size - offset)) offset += extent.length;
      }
      return [];
    } finally {
      await device.close();
    }
  } catch (cause) {
    return complaint(toBlksnapError(cause).message);
  }
}
