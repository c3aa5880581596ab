/** Takes a kernel device out of use before it goes: from the hold on nobody can mount it or claim it otherwise, and
 *  what the page cache still had for it is written. */

import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { mountPointsOn, openersOf } from './mounts.ts';

/** Whoever has just unmounted it may be a moment away from having let go. */
const PATIENCE_MS = 500;
const STEP_MS = 50;

export interface HoldOptions {
  /** What is on it outlives it: what the page cache has is written, and processes that have it open without claiming it
   *  (dd, fio) keep it, too. */
  readonly dataStays: boolean;
}

/** Holds the device until the returned function is called. Errors: EBUSY, with who uses it and the next step. */
export async function holdDevice(device: string, { dataStays }: HoldOptions): Promise<() => Promise<void>> {
  const handle = await claim(device);
  try {
    const openers = dataStays ? openersOf(device) : [];
    if (openers.length > 0) throw busy(device, `${openers.join(', ')} has it open`, 'end that first');
    if (dataStays) await handle.datasync();
  } catch (cause) {
    await handle.close();
    throw toBlksnapError(cause);
  }
  return () => handle.close();
}

async function claim(device: string): Promise<fs.promises.FileHandle> {
  const { O_RDONLY, O_EXCL } = fs.constants;
  for (const untilMs = performance.now() + PATIENCE_MS; ; await sleep(STEP_MS)) {
    try {
      return await fs.promises.open(device, O_RDONLY | O_EXCL);
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException;
      if (code !== 'EBUSY') throw toBlksnapError(cause, `Cannot take "${device}" out of use`);
      const places = mountPointsOn(device);
      if (places.length > 0) throw busy(device, `it is mounted at ${places.join(', ')}`, `umount ${places.join(' ')}`);
      if (performance.now() > untilMs) throw busy(device, 'something lies on it', '`lsblk` tells what');
    }
  }
}

function busy(device: string, why: string, next: string): BlksnapError {
  return new BlksnapError('EBUSY', `Kernel device ${device} is in use: ${why}; ${next}`);
}
