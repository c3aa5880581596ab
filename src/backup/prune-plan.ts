/** Decides what a prune removes, and which of the points that stay must be written anew for it.
 *
 *  A point whose parent goes becomes a full, unless an older point that stays can take the parent's
 *  place. It can when it lies between the two in the same change history: what the point stores
 *  is all that changed since its parent, so all that changed since any later moment too, and
 *  everything else is as it was at that moment. Does no I/O. */

import { BlksnapError } from '../util/errors.ts';
import type { Manifest, RestorePoint } from './manifest.ts';

export interface Rewrite {
  readonly point: RestorePoint;
  /** What it will rest on; null when it becomes a full. */
  readonly parent: RestorePoint | null;
}

export interface PrunePlan {
  readonly keep: readonly RestorePoint[];
  readonly remove: readonly RestorePoint[];
  /** Oldest first. */
  readonly rewrites: readonly Rewrite[];
}

/** Errors: EINVAL unless `keepLast` is a whole number above 0. */
export function planPrune(manifest: Manifest, keepLast: number): PrunePlan {
  if (!Number.isSafeInteger(keepLast) || keepLast < 1) {
    throw new BlksnapError(
      'EINVAL',
      `Cannot prune disk "${manifest.disk}" to its last ${keepLast} restore points: keep at least 1`,
    );
  }
  const remove = manifest.points.slice(0, -keepLast);
  const keep = manifest.points.slice(-keepLast);
  const going = new Map(remove.map((point) => [point.id, point]));
  const rewrites: Rewrite[] = [];
  for (const [index, point] of keep.entries()) {
    const parent = point.parent === null ? undefined : going.get(point.parent);
    if (parent === undefined) continue;
    rewrites.push({
      point,
      parent: keep.slice(0, index).findLast((other) => liesBetween(parent, other, point)) ?? null,
    });
  }
  return { keep, remove, rewrites };
}

function liesBetween(parent: RestorePoint, other: RestorePoint, point: RestorePoint): boolean {
  const oneHistory =
    parent.generationId === point.generationId &&
    other.generationId === point.generationId &&
    point.generationId !== null;
  if (!oneHistory || other.size !== point.size) return false;
  if (parent.changeNumber === null || other.changeNumber === null || point.changeNumber === null) return false;
  return parent.changeNumber <= other.changeNumber && other.changeNumber <= point.changeNumber;
}
