/** Chooses the reactor's driver: by trying io_uring, never by guessing. */

import { BlksnapError, ERRNO, toBlksnapError } from '../util/errors.ts';
import { MIB } from '../util/units.ts';
import { PortableReactor } from './portable/reactor.ts';
import { completed } from './reactor.ts';
import type { Reactor } from './reactor.ts';
import { ffiAvailable } from './sys.ts';
import { UringReactor } from './uring/reactor.ts';

export type DriverName = 'uring' | 'portable';

const DEFAULT_ARENA_BYTES = 128 * MIB;
const PROBE_ARENA_BYTES = MIB;
const PROBE_ENTRIES = 8;

export interface ReactorOptions {
  /** Forces a driver; the default is the best that works here. */
  readonly driver?: DriverName;
  readonly arenaBytes?: number;
  /** Memory that storage in memory may use without a copy, taken when it is used; Infinity for all that can be addressed.
   *  Default 0. */
  readonly slabBytes?: number;
  /** The thread has an event loop of its own to keep going (the main thread). */
  readonly cooperative?: boolean;
}

/** The driver that fits this process, and for `portable` why it is not `uring`. */
export interface DriverChoice {
  readonly driver: DriverName;
  readonly reason: string;
}

/** Finds out whether io_uring works here, by setting up a ring and running an operation on it. */
export async function chooseDriver(): Promise<DriverChoice> {
  if (!ffiAvailable()) return { driver: 'portable', reason: `io_uring is for Linux, this is ${process.platform}` };
  try {
    const reactor = UringReactor.open({ entries: PROBE_ENTRIES, arenaBytes: PROBE_ARENA_BYTES, cooperative: true });
    const result = await completed((completion) => reactor.sync(-1, completion));
    await reactor.close();
    // The operation came back from the kernel: that is the proof. A bad descriptor cannot have any other end.
    if (result === -ERRNO.EBADF) return { driver: 'uring', reason: '' };
    return { driver: 'portable', reason: `an io_uring operation ended with ${result}` };
  } catch (cause) {
    return { driver: 'portable', reason: toBlksnapError(cause).message };
  }
}

/** Errors: EOPNOTSUPP when the forced driver does not work here. */
export async function openReactor(options: ReactorOptions = {}): Promise<Reactor> {
  const { arenaBytes = DEFAULT_ARENA_BYTES, slabBytes = 0 } = options;
  const choice = options.driver === 'portable' ? { driver: options.driver, reason: '' } : await chooseDriver();
  if (options.driver === 'uring' && choice.driver !== 'uring') {
    throw new BlksnapError('EOPNOTSUPP', `Cannot use the uring driver: ${choice.reason}; use the portable driver`);
  }
  switch (choice.driver) {
    case 'uring':
      return UringReactor.open({ arenaBytes, slabBytes, cooperative: options.cooperative ?? false });
    case 'portable':
      return PortableReactor.open({ arenaBytes, slabBytes });
  }
}
