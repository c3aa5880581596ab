/** Guards against writes that would pass the filters by, or run in a circle: checked when a disk is
 *  attached and when a snapshot gets its storage. Looks through partitions, loop devices, device-mapper and
 *  filesystems; see underlying.ts for where that ends. */

import { BlksnapError } from '../util/errors.ts';
import { MEMORY_STORAGE } from './storage-place.ts';
import { loopsOver, underlyingFd, underlyingPath } from './underlying.ts';
import type { Underlying } from './underlying.ts';

export interface Origin {
  readonly name: string;
  /** Null where the disk is no file or device. */
  readonly path: string | null;
}

/** Storage on an origin of its own snapshot would have to copy what it writes, for ever.
 *  Errors: EINVAL, naming the disk. */
export function refuseOwnStorage(
  origins: readonly Origin[],
  storage: { readonly path: string; readonly fd: number },
): void {
  if (storage.path === MEMORY_STORAGE) return;
  const place = underlyingFd(storage.fd, storage.path);
  for (const { name, path } of origins) {
    const origin = path === null ? null : knownUnderlying(path);
    if (origin === null || !(place.all.has(origin.own) || origin.all.has(place.own))) continue;
    throw new BlksnapError(
      'EINVAL',
      `Cannot use "${storage.path}" as diff storage: it lies on disk "${name}", which the snapshot is taken of; name another place`,
    );
  }
}

/** A disk over another one, or under it, would change it unseen. Errors: EBUSY, naming what stands in the way. */
export function refuseSharedOrigin(path: string, attached: readonly Origin[]): void {
  const loops = loopsOver(path);
  if (loops.length > 0) {
    throw new BlksnapError(
      'EBUSY',
      `Cannot attach "${path}": loop device ${loops.join(', ')} writes to it; detach it with losetup -d first`,
    );
  }
  const wanted = knownUnderlying(path);
  if (wanted === null) return;
  for (const other of attached) {
    const origin = other.path === null ? null : knownUnderlying(other.path);
    if (origin === null || !(wanted.all.has(origin.own) || origin.all.has(wanted.own))) continue;
    const how = wanted.own === origin.own ? 'it is' : 'it shares its data with';
    throw new BlksnapError(
      'EBUSY',
      `Cannot attach "${path}": ${how} disk "${other.name}" ("${other.path}"), which is attached`,
    );
  }
}

/** Null for a path that is gone. */
function knownUnderlying(path: string): Underlying | null {
  try {
    return underlyingPath(path);
  } catch {
    return null;
  }
}
