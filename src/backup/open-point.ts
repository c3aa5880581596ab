/** Opens a restore point as a read-only device: for restore, prune, and a mount that serves it at once. */

import type { BioPool } from '../block/bio.ts';
import type { Reactor } from '../io/reactor.ts';
import { insideDirectory, openQcow2 } from '../qcow2/open.ts';
import type { Qcow2Device } from '../qcow2/device.ts';
import { toBlksnapError } from '../util/errors.ts';
import { findPoint } from './manifest.ts';
import type { RestorePoint } from './manifest.ts';
import { diskPathOf, pointFile, readManifest } from './repository.ts';

export interface OpenedPoint {
  readonly point: RestorePoint;
  /** The opener's to close. Stays readable when prune removes the point's files. */
  readonly device: Qcow2Device;
}

export interface PointName {
  readonly directory: string;
  readonly disk: string;
  /** Default: the newest. */
  readonly point?: string | undefined;
}

/** Errors: ENOENT when there is no such disk or point; what opening its files fails with. */
export async function openPoint(
  name: PointName,
  context: { readonly reactor: Reactor; readonly pool: BioPool },
): Promise<OpenedPoint> {
  const diskPath = diskPathOf(name.directory, name.disk);
  for (let manifest = readManifest(name.directory, name.disk); ;) {
    const point = findPoint(manifest, name.point);
    try {
      // A file that was tampered with must not make us serve others of this machine.
      const allowBacking = insideDirectory(diskPath);
      return { point, device: await openQcow2(pointFile(diskPath, point.id), { ...context, allowBacking }) };
    } catch (cause) {
      // A prune may have changed the chain just now: then there is a new manifest, and it is worth another look.
      const now = readManifest(name.directory, name.disk);
      if (JSON.stringify(now) === JSON.stringify(manifest))
        throw toBlksnapError(cause, `Cannot open restore point ${point.id} of disk "${name.disk}"`);
      manifest = now;
    }
  }
}
