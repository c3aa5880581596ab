/** A snapshot whose disks live on several I/O threads: each thread has a part of it, with a storage of its own in the
 *  same directory (or in memory) and a share of the limit. */

import fs from 'node:fs';
import { MEMORY_STORAGE } from '../blksnap/storage-place.ts';
import { BlksnapError } from '../util/errors.ts';
import type { SnapshotInfo } from './io-protocol.ts';

export interface SnapshotPart {
  readonly thread: number;
  /** The snapshot's own, or, where the part is persistent, another. */
  readonly id: string;
  readonly disks: readonly string[];
}

/** One file or device cannot be filled by several threads. Errors: EINVAL. */
export function refuseOnePlace(path: string): void {
  if (path === MEMORY_STORAGE || fs.statSync(path, { throwIfNoEntry: false })?.isDirectory() === true) return;
  throw new BlksnapError(
    'EINVAL',
    `Cannot keep the snapshot in "${path}": its disks live on several I/O threads, and each needs a file of its own; name a directory or :memory:`,
  );
}

/** By the number of disks; together exactly the limit. */
export function limitShares(limitBytes: number | null, parts: readonly SnapshotPart[]): Array<number | null> {
  if (limitBytes === null) return parts.map(() => null);
  const total = parts.reduce((sum, { disks }) => sum + disks.length, 0);
  let before = 0;
  return parts.map(({ disks }) => {
    const from = Math.floor((limitBytes * before) / total);
    before += disks.length;
    return Math.floor((limitBytes * before) / total) - from;
  });
}

/** The parts as one snapshot. */
export function merged(
  parts: readonly SnapshotInfo[],
  held: { readonly disks: readonly string[]; readonly heldMs: number | null },
): SnapshotInfo {
  const [first] = parts as [SnapshotInfo];
  const images = parts.flatMap((part) => part.images);
  return {
    ...first,
    heldMs: held.heldMs ?? 0,
    places: parts.flatMap(({ places }) => places),
    usedBytes: parts.reduce((sum, { usedBytes }) => sum + usedBytes, 0),
    limitBytes: parts.some(({ limitBytes }) => limitBytes === null)
      ? null
      : parts.reduce((sum, { limitBytes }) => sum + limitBytes!, 0),
    images: held.disks.flatMap((name) => images.find(({ disk }) => disk === name) ?? []),
  };
}
