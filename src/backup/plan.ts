/** Decides what a backup stores: everything, or what changed since which restore point.
 *
 *  Unknown means full: whenever the change history does not provably reach back to the parent,
 *  the plan is a full backup and says why. Another disk's directory is an error, never a full:
 *  it is more likely a slip than a wish. Does no I/O. */

import { BlksnapError } from '../util/errors.ts';
import { chainOf } from './manifest.ts';
import type { Manifest, PointKind, RestorePoint } from './manifest.ts';

/** Files that a point may rest on, itself included: every one costs each reader a look, and readers have limits. */
const MAX_CHAIN_POINTS = 200;

/** `auto`: incremental where possible. `differential`: what changed since the newest full. */
export type BackupMode = 'auto' | 'full' | 'differential';

/** What the source says of itself. */
export interface SourceState {
  readonly disk: string;
  /** Tells the disk from another of the same name; null when the source cannot say. */
  readonly identity: string | null;
  /** Bytes. */
  readonly size: number;
  /** The change history, and the number of the snapshot in it; null when the source keeps none. */
  readonly generationId: string | null;
  readonly changeNumber: number | null;
}

export interface BackupPlan {
  readonly kind: PointKind;
  /** The point to build on; null for a full. */
  readonly parent: RestorePoint | null;
  /** Why, in words that complete "full backup: …". */
  readonly reason: string;
}

/** `damageOf` tells what is wrong with a point or with what it rests on, null when nothing is.
 *  Errors: EINVAL when the manifest is of another disk. */
export function planBackup(
  manifest: Manifest,
  source: SourceState,
  options: { readonly mode: BackupMode; readonly damageOf: (point: RestorePoint) => string | null },
): BackupPlan {
  checkIdentity(manifest, source);
  if (options.mode === 'full') return full('asked for');
  const newest = manifest.points.at(-1);
  if (newest === undefined) return full('first restore point of this disk');

  const differential = options.mode === 'differential';
  const parent = differential ? manifest.points.findLast((point) => point.kind === 'full')! : newest;
  const depth = chainOf(manifest, parent).length;
  const tooDeep = depth < MAX_CHAIN_POINTS ? null : `${parent.id} rests on ${depth - 1} points already`;
  const obstacle = whyNotSince(parent, source) ?? tooDeep ?? options.damageOf(parent);
  if (obstacle !== null) return full(obstacle);
  return {
    kind: differential ? 'differential' : 'incremental',
    parent,
    reason: `changes since ${differential ? 'the full ' : ''}${parent.id}`,
  };
}

/** The plan for when the source turns out not to know what changed. */
export function full(reason: string): BackupPlan {
  return { kind: 'full', parent: null, reason };
}

function checkIdentity(manifest: Manifest, source: SourceState): void {
  const otherName = manifest.disk !== source.disk;
  const otherDisk =
    manifest.identity !== null &&
    source.identity !== null &&
    manifest.identity !== source.identity &&
    !sameHistory(manifest, source);
  if (!otherName && !otherDisk) return;
  throw new BlksnapError(
    'EINVAL',
    `Cannot back up disk "${source.disk}" here: the directory has the backups of another disk ` +
      (otherName
        ? `("${manifest.disk}")`
        : `of the same name (its identity is ${manifest.identity}, this one's is ${source.identity})`) +
      '; give another directory',
  );
}

/** A generation id is made once and for one disk: one that shares it is that disk, wherever it is now. */
function sameHistory(manifest: Manifest, { generationId }: SourceState): boolean {
  return generationId !== null && manifest.points.at(-1)?.generationId === generationId;
}

/** Why the changes since a point cannot be told, or null when they can. */
function whyNotSince(point: RestorePoint, source: SourceState): string | null {
  if (source.generationId === null || source.changeNumber === null) return 'the source does not track changes';
  if (point.generationId === null || point.changeNumber === null) {
    return `${point.id} was taken of a source that did not track changes`;
  }
  if (point.size !== source.size) return `the disk's size changed from ${point.size} to ${source.size} bytes`;
  if (point.generationId !== source.generationId) {
    return `the disk's change history began anew since ${point.id} (generation ${source.generationId}, was ${point.generationId})`;
  }
  if (point.changeNumber >= source.changeNumber) {
    return `the snapshot is not newer than ${point.id} (change number ${source.changeNumber}, was ${point.changeNumber})`;
  }
  return null;
}
