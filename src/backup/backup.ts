/** Makes a restore point of a source: plan, store, publish.
 *
 *  Until the manifest names the new point, the disk's directory has only one more file that no
 *  one looks at; a crash, a failed read or a cancel at any moment leaves the points as they were. */

import type { BlockDevice } from '../block/device.ts';
import { toBlksnapError } from '../util/errors.ts';
import type { CopyContext, CopyProgress } from './copy.ts';
import { renameDurably } from '../util/durable.ts';
import { visibleDamage } from './integrity.ts';
import { lockDisk } from './lock.ts';
import { newPointId } from './manifest.ts';
import type { Manifest, RestorePoint } from './manifest.ts';
import { full, planBackup } from './plan.ts';
import type { BackupMode, BackupPlan } from './plan.ts';
import { writePointFile } from './point-file.ts';
import type { ByteRange } from './ranges.ts';
import { makeDiskDirectory, openManifest, partialFile, pointFile, writeManifest } from './repository.ts';
import type { BackupSource } from './source.ts';

export interface BackupOptions extends CopyContext {
  /** The backup directory; made where it is missing. */
  readonly directory: string;
  readonly mode?: BackupMode;
  /** Hears what will be done before it is done. */
  readonly onPlan?: (plan: BackupPlan) => void;
}

export interface BackupResult {
  readonly point: RestorePoint;
  readonly progress: CopyProgress;
}

/** Backs the source up. Errors: EINVAL for another disk's directory, EBUSY while another backup or prune
 *  runs there, ECANCELED, and whatever the source or the directory fail with. */
export async function backUp(source: BackupSource, options: BackupOptions): Promise<BackupResult> {
  const diskPath = makeDiskDirectory(options.directory, source.disk);
  const lock = lockDisk(diskPath, 'backup');
  try {
    const manifest = openManifest(diskPath, source.disk, source.identity);
    const { plan, ranges } = await decide(diskPath, manifest, source, options.mode ?? 'auto');
    options.onPlan?.(plan);
    const result = await store(diskPath, manifest, source, { plan, ranges, context: options });
    writeManifest(diskPath, {
      ...manifest,
      // The newest word, in case the disk was moved.
      identity: source.identity ?? manifest.identity,
      points: [...manifest.points, result.point],
    });
    return result;
  } catch (cause) {
    throw toBlksnapError(cause, `Backup of disk "${source.disk}" failed, its earlier restore points are untouched`);
  } finally {
    lock.release();
  }
}

/** The plan, and the ranges that it stores: all of the disk when the source cannot tell what changed. */
async function decide(
  diskPath: string,
  manifest: Manifest,
  source: BackupSource,
  mode: BackupMode,
): Promise<{ plan: BackupPlan; ranges: readonly ByteRange[] }> {
  const plan = planBackup(
    manifest,
    { ...stateOf(source), size: source.device.size },
    {
      mode,
      damageOf: (point) => visibleDamage(diskPath, manifest, point),
    },
  );
  const everything = [{ offset: 0, length: source.device.size }];
  if (plan.parent === null) return { plan, ranges: everything };
  const changed = await source.changedSince(plan.parent.changeNumber!);
  if (changed !== null) return { plan, ranges: changed };
  return { plan: full(`the source cannot tell what changed since ${plan.parent.id}`), ranges: everything };
}

function stateOf({
  disk,
  identity,
  generationId,
  changeNumber,
}: BackupSource): Omit<BackupSource, 'device' | 'changedSince' | 'done'> {
  return { disk, identity, generationId, changeNumber };
}

/** Writes the point's file and gives it its name. */
async function store(
  diskPath: string,
  manifest: Manifest,
  source: BackupSource,
  {
    plan,
    ranges,
    context,
  }: {
    readonly plan: BackupPlan;
    readonly ranges: readonly ByteRange[];
    readonly context: CopyContext;
  },
): Promise<BackupResult> {
  const createdAt = new Date();
  const id = newPointId(createdAt, manifest.points);
  const device: BlockDevice = source.device;
  const file = partialFile(diskPath, id);
  const parent = plan.parent?.id ?? null;
  const copying = { ...context, onDone: source.done };
  const { content, progress } = await writePointFile(device, { diskPath, id, file, parent, ranges }, copying);
  renameDurably(file, pointFile(diskPath, id));
  const point: RestorePoint = {
    id,
    createdAt: createdAt.toISOString(),
    kind: plan.kind,
    size: device.size,
    generationId: source.generationId,
    changeNumber: source.changeNumber,
    reason: plan.reason,
    bytesRead: progress.bytesRead,
    ...content,
  };
  return { point, progress };
}
