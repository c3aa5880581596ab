/** Removes old restore points, and never leaves one that cannot be restored.
 *
 *  Points that stay and rest on points that go are written anew first, from files whose checksums
 *  were just found right: damage must not be copied into a file with fresh, matching checksums.
 *  The steps by which the new files take their places are those of repository.ts: a crash at any
 *  moment leaves every point readable, and the next backup or prune clears up. */

import fs from 'node:fs';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import type { CopyContext } from './copy.ts';
import { checkPointFile, describeDamage, visibleDamage } from './integrity.ts';
import { lockDisk } from './lock.ts';
import { chainOf } from './manifest.ts';
import type { Manifest, PointContent, RestorePoint } from './manifest.ts';
import { openPoint } from './open-point.ts';
import { planPrune } from './prune-plan.ts';
import type { PrunePlan, Rewrite } from './prune-plan.ts';
import { writePointFile } from './point-file.ts';
import type { ByteRange } from './ranges.ts';
import {
  clearLeftovers,
  diskPathOf,
  openManifest,
  pointFile,
  readManifest,
  rewriteFile,
  writeManifest,
} from './repository.ts';
import type { Qcow2Device } from '../qcow2/device.ts';
import { syncDirectory } from '../util/directories.ts';

export interface PruneOptions extends CopyContext {
  readonly directory: string;
  readonly disk: string;
  /** How many of the newest points stay; at least 1. */
  readonly keepLast: number;
}

export interface PruneResult {
  readonly disk: string;
  /** Ids, oldest first. */
  readonly removed: readonly string[];
  readonly rewritten: readonly string[];
  /** Bytes of files fewer than before; negative when fulls that had to be written outweigh what went. */
  readonly bytesFreed: number;
}

/** Errors: EINVAL for keepLast, ENOENT, EBUSY, EBADMSG when a point that stays is damaged, ECANCELED. */
export async function prune(options: PruneOptions): Promise<PruneResult> {
  const { directory, disk } = options;
  // Read before the lock too: a name that has no backups must not leave a lock file.
  planPrune(readManifest(directory, disk), options.keepLast);
  const diskPath = diskPathOf(directory, disk);
  const lock = lockDisk(diskPath, 'prune');
  try {
    const manifest = openManifest(diskPath, disk, null);
    const plan = planPrune(manifest, options.keepLast);
    if (plan.remove.length > 0) await carryOut(diskPath, manifest, plan, options);
    const after = readManifest(directory, disk);
    return {
      disk,
      removed: plan.remove.map((point) => point.id),
      rewritten: plan.rewrites.map(({ point }) => point.id),
      bytesFreed: fileBytes(manifest) - fileBytes(after),
    };
  } catch (cause) {
    throw toBlksnapError(cause, `Cannot prune the backups of disk "${disk}"`);
  } finally {
    lock.release();
  }
}

function fileBytes(manifest: Manifest): number {
  return manifest.points.reduce((sum, point) => sum + point.fileBytes, 0);
}

async function carryOut(diskPath: string, manifest: Manifest, plan: PrunePlan, options: PruneOptions): Promise<void> {
  for (const point of plan.keep) {
    const damage = visibleDamage(diskPath, manifest, point);
    if (damage !== null) throw refusal(damage);
  }
  const contents = new Map<string, PointContent>();
  try {
    const checked = new Set<string>();
    for (const rewrite of plan.rewrites) {
      await checkChain(diskPath, manifest, rewrite.point, { checked, options });
      contents.set(rewrite.point.id, await writeAnew(diskPath, rewrite, options));
    }
  } catch (cause) {
    clearLeftovers(diskPath, manifest);
    throw cause;
  }
  if (contents.size > 0) switchFiles(diskPath, manifest, contents);
  const staying = new Set(plan.keep.map((point) => point.id));
  const settled = readManifest(options.directory, options.disk);
  clearLeftovers(diskPath, { ...settled, points: settled.points.filter((point) => staying.has(point.id)) });
}

function refusal(damage: string): BlksnapError {
  return new BlksnapError(
    'EBADMSG',
    `${damage}; nothing was removed. See \`blksnap verify\`, and make a new full backup`,
  );
}

async function checkChain(
  diskPath: string,
  manifest: Manifest,
  point: RestorePoint,
  { checked, options }: { readonly checked: Set<string>; readonly options: PruneOptions },
): Promise<void> {
  for (const link of chainOf(manifest, point)) {
    if (checked.has(link.id)) continue;
    const [damage] = await checkPointFile(diskPath, link, { signal: options.signal });
    if (damage !== undefined)
      throw refusal(`restore point ${link.id}, which ${point.id} rests on, is damaged: ${describeDamage(damage)}`);
    checked.add(link.id);
  }
}

/** Writes the file that will take the place of the point's. */
async function writeAnew(diskPath: string, { point, parent }: Rewrite, options: PruneOptions): Promise<PointContent> {
  const { device } = await openPoint({ directory: options.directory, disk: options.disk, point: point.id }, options);
  try {
    const ranges = parent === null ? [{ offset: 0, length: device.size }] : await ownRanges(device);
    const file = rewriteFile(diskPath, point.id);
    const { content } = await writePointFile(
      device,
      { diskPath, id: point.id, file, parent: parent?.id ?? null, ranges },
      options,
    );
    return { kind: parent === null ? 'full' : 'incremental', ...content };
  } finally {
    await device.close();
  }
}

/** What the point's own file holds, zeros that it says are zero included. */
async function ownRanges(device: Qcow2Device): Promise<ByteRange[]> {
  const ranges: ByteRange[] = [];
  for (let offset = 0; offset < device.size;) {
    for (const extent of await device.ownExtents(offset, device.size - offset)) {
      if (extent.kind !== 'unallocated') ranges.push({ offset, length: extent.length });
      offset += extent.length;
    }
  }
  return ranges;
}

/** Says what is coming, then lets the new files take the names of the old ones. */
function switchFiles(diskPath: string, manifest: Manifest, contents: ReadonlyMap<string, PointContent>): void {
  const points = manifest.points.map((point) => {
    const rewrite = contents.get(point.id);
    return rewrite === undefined ? point : { ...point, rewrite };
  });
  writeManifest(diskPath, { ...manifest, points });
  for (const id of contents.keys()) fs.renameSync(rewriteFile(diskPath, id), pointFile(diskPath, id));
  syncDirectory(diskPath);
}
