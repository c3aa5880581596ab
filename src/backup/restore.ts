/** Writes a restore point to a raw file or a block device.
 *
 *  Every file that the point rests on is compared with its checksums: before a block device is touched, and before a
 *  file appears under its name, which it does only when it is whole and synced. */

import type { BioPool } from '../block/bio.ts';
import type { Reactor } from '../io/reactor.ts';
import { checkGoingOn } from '../util/cancel.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { MIB } from '../util/units.ts';
import { copyWhileChecking } from './checked-copy.ts';
import { copyRanges } from './copy.ts';
import type { CopyProgress } from './copy.ts';
import { checkPointFile, describeDamage } from './integrity.ts';
import type { Damage } from './integrity.ts';
import { chainOf, findPoint } from './manifest.ts';
import type { RestorePoint } from './manifest.ts';
import { openPoint } from './open-point.ts';
import type { PointName } from './open-point.ts';
import { diskPathOf, readManifest } from './repository.ts';
import { openTarget } from './target.ts';
import type { Target } from './target.ts';

/** Zeros of this size or more become holes, or are left to the device. */
const GRANULE_BYTES = MIB / 16;

export interface RestoreProgress {
  /** `check`: bytes of the backup's files; `copy`: bytes of the disk, also where the same reads check them. */
  readonly phase: 'check' | 'copy';
  readonly bytesDone: number;
  readonly bytesTotal: number;
  readonly seconds: number;
}

export interface RestoreOptions extends PointName {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  /** A path: a file that is made, or a block device. */
  readonly to: string;
  /** Write even where the target holds data. */
  readonly overwrite?: boolean;
  /** Restore what can be read, although damage was found. */
  readonly acceptDamage?: boolean;
  readonly onProgress?: ((progress: RestoreProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface RestoreResult {
  readonly point: RestorePoint;
  /** What was found and accepted. */
  readonly damage: readonly Damage[];
  readonly progress: CopyProgress;
}

/** Errors: ENOENT, EBADMSG when the point is damaged, those of openTarget, ECANCELED. */
export async function restore(options: RestoreOptions): Promise<RestoreResult> {
  const manifest = readManifest(options.directory, options.disk);
  const point = findPoint(manifest, options.point);
  const target = await openTarget(
    { path: options.to, size: point.size, overwrite: options.overwrite ?? false },
    options,
  );
  const job = { point, chain: chainOf(manifest, point), target };
  try {
    const { damage, progress } = await checkAndCopy(job, options);
    checkGoingOn(options.signal);
    await target.finish();
    return { point, damage, progress };
  } catch (cause) {
    throw toBlksnapError(cause, `Cannot restore disk "${options.disk}" to "${options.to}"`);
  } finally {
    await target.abort();
  }
}

interface Job {
  readonly point: RestorePoint;
  /** The point and what it rests on. */
  readonly chain: readonly RestorePoint[];
  readonly target: Target;
}

type Restored = Pick<RestoreResult, 'damage' | 'progress'>;

/** Both at once, for a target that appears only after both, where that can be. */
async function checkAndCopy({ point, chain, target }: Job, options: RestoreOptions): Promise<Restored> {
  const { file } = target;
  const both = file === null ? null : await copyWhileChecking({ point, chain, file }, options);
  const damage = both?.damage ?? (await damageOf(chain, options));
  refuseDamage(damage, options);
  return { damage, progress: both?.progress ?? (await copyPoint(point, target, options)) };
}

function refuseDamage(damage: readonly Damage[], { acceptDamage }: RestoreOptions): void {
  if (damage.length === 0 || acceptDamage === true) return;
  throw new BlksnapError(
    'EBADMSG',
    `the backup is damaged: ${damage.map(describeDamage).join('; ')}. Restore another point, or force it to get what can be read`,
  );
}

async function copyPoint(point: RestorePoint, target: Target, options: RestoreOptions): Promise<CopyProgress> {
  const { onProgress } = options;
  const { device } = await openPoint({ directory: options.directory, disk: options.disk, point: point.id }, options);
  try {
    return await copyRanges(device, target, {
      reactor: options.reactor,
      pool: options.pool,
      signal: options.signal,
      onProgress:
        onProgress &&
        (({ bytesDone, bytesTotal, seconds }) => onProgress({ phase: 'copy', bytesDone, bytesTotal, seconds })),
      ranges: [{ offset: 0, length: point.size }],
      granule: GRANULE_BYTES,
    });
  } finally {
    await device.close();
  }
}

/** What is wrong with the files of a chain. */
async function damageOf(chain: readonly RestorePoint[], options: RestoreOptions): Promise<Damage[]> {
  const bytesTotal = chain.reduce((sum, point) => sum + point.fileBytes, 0);
  const startMs = performance.now();
  let bytesDone = 0;
  const onBytes = (bytes: number): void => {
    bytesDone += bytes;
    options.onProgress?.({ phase: 'check', bytesDone, bytesTotal, seconds: (performance.now() - startMs) / 1000 });
  };
  const damage: Damage[] = [];
  const io = { signal: options.signal, onBytes };
  for (const point of chain)
    damage.push(...(await checkPointFile(diskPathOf(options.directory, options.disk), point, io)));
  return damage;
}
