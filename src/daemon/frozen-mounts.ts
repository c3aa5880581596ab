/** A take while the file systems that are mounted on its disks' kernel devices are frozen. */

import fs from 'node:fs';
import path from 'node:path';
import { freezeMounts } from '../kernel/fsfreeze.ts';
import { mountPointsOn } from '../kernel/mounts.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';

export interface FrozenTake<Taken> {
  /** Paths of kernel devices. */
  readonly devices: readonly string[];
  /** Where the daemon writes while it takes. */
  readonly ownPlaces: readonly string[];
  readonly limitMs: number;
  readonly take: () => Promise<Taken>;
  readonly undo: (taken: Taken) => Promise<void>;
}

/** Nothing is frozen where nothing is mounted; `frozenMs` is then null. Errors: ECANCELED, ETIMEDOUT when a file system
 *  cannot be frozen, or thawed by itself before the take was over; what the take fails with. */
export async function takeMounted<Taken>(
  options: FrozenTake<Taken>,
): Promise<{ readonly taken: Taken; readonly frozenMs: number | null }> {
  const { devices, limitMs, take, undo } = options;
  const places = [...new Set(devices.flatMap(mountPointsOn))];
  if (places.length === 0) return { taken: await take(), frozenMs: null };
  refuseOwn(places, options.ownPlaces);
  const began = performance.now();
  const { thaw } = await freezeMounts(places, limitMs).catch((cause: unknown) => {
    const { code, message } = toBlksnapError(cause);
    throw new BlksnapError(code, `${message}; --no-fsfreeze takes the snapshot without`, { cause });
  });
  let taken: Taken;
  try {
    taken = await take();
  } catch (cause) {
    await thaw();
    throw cause;
  }
  if (await thaw()) return { taken, frozenMs: performance.now() - began };
  await undo(taken);
  throw new BlksnapError('ETIMEDOUT', `Cannot take a snapshot: it was not taken ${limitMs} ms after the freeze began`);
}

/** A daemon that waits for a write to a file system that it has frozen would wait for the time limit. */
function refuseOwn(places: readonly string[], ownPlaces: readonly string[]): void {
  for (const own of ownPlaces) {
    const { dev } = fs.statSync(fs.existsSync(own) ? own : path.dirname(own));
    const place = places.find((one) => fs.statSync(one).dev === dev);
    if (place === undefined) continue;
    throw new BlksnapError(
      'EBUSY',
      `Cannot freeze ${place}: the daemon itself writes to ${own} on it; move that, or take the snapshot with --no-fsfreeze`,
    );
  }
}
