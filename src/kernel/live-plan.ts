/** Live attach as a plan: what stands between the state of the kernel and the goal, as steps. Knows no kernel,
 *  does nothing: `src/daemon/live-disks.ts` observes, and takes the steps.
 *
 *  A *volume* is a device-mapper device that is in use. Its table is loaded a second time into a private device, the
 *  *backend*; the daemon serves the backend as a kernel device, and the volume gets a table that leads there:
 *
 *      before      filesystem -> volume -> [table] -> disks
 *      attached    filesystem -> volume -> kernel device -> daemon: tracker -> backend -> [table] -> disks
 *
 *  What is remembered is the goal alone, written before the first step. Where a step was cut short is seen in the
 *  kernel: from whatever is found there, the plan leads to the goal. So every prefix of a plan has a recovery, and
 *  recovery that is cut short has one too.
 *
 *  There is no step "suspend". A table is loaded while the old one works, and the kernel swaps it in within one
 *  system call, which waits for what is under way, and fails with everything as before when it is killed. So nobody's
 *  death leaves a volume suspended. */

import { unreachable } from '../util/assert.ts';

/** `original`: the volume's own table. */
export type LiveGoal = 'attached' | 'original';

/** What there is of one live attach. */
export interface LiveObserved {
  /** `ours`: its table leads to our kernel device, which this daemon serves or can connect again. `astray`: to one that
   *  is ours no longer, so that I/O fails. `own`: any other table. `absent`: no such volume (after a start of the
   *  machine, say). */
  readonly volume: 'ours' | 'astray' | 'own' | 'absent';
  /** A table waits to be swapped in. */
  readonly loaded: boolean;
  readonly backend: boolean;
  /** This daemon serves the backend, and the kernel device leads to it. */
  readonly served: boolean;
}

export type LiveStep =
  /** Makes the backend of the volume's table; of the remembered one where the volume has ours. */
  | 'createBackend'
  /** Attaches the backend as a disk and makes the kernel device, or connects one that waits for its daemon. When that
   *  was another device than before, a volume that was `ours` is `astray`: observe and plan anew. */
  | 'serve'
  /** Loads the table that leads to the kernel device, to be swapped in. */
  | 'loadOurs'
  /** Loads the backend's table, to be swapped in. */
  | 'loadOriginal'
  /** Makes the loaded table the live one. */
  | 'swap'
  /** Forgets a loaded table. */
  | 'clear'
  /** Takes the kernel device down and detaches the disk, where there are any. */
  | 'withdraw'
  | 'removeBackend';

const SWAP_BACK: readonly LiveStep[] = ['loadOriginal', 'swap', 'withdraw', 'removeBackend'];

/** The steps from what is there to the goal. None when it is reached. */
export function planLive(goal: LiveGoal, observed: LiveObserved): LiveStep[] {
  switch (goal) {
    case 'attached':
      return planAttached(observed);
    case 'original':
      return planOriginal(observed);
    default:
      return unreachable(goal);
  }
}

function planAttached(observed: LiveObserved): LiveStep[] {
  const { volume, loaded, backend, served } = observed;
  switch (volume) {
    case 'ours':
      return [...when(!backend, 'createBackend'), ...when(!served, 'serve'), ...when(loaded, 'clear')];
    case 'astray':
      return [...when(!backend, 'createBackend'), ...when(!served, 'serve'), 'loadOurs', 'swap'];
    case 'own':
      // A backend that is there may be of a table that is no longer the volume's.
      return [...planOriginal(observed), 'createBackend', 'serve', 'loadOurs', 'swap'];
    case 'absent':
      return planOriginal(observed);
    default:
      return unreachable(volume);
  }
}

function planOriginal({ volume, loaded, backend, served }: LiveObserved): LiveStep[] {
  switch (volume) {
    case 'ours':
      // What is under way in the kernel device must end before the swap: somebody has to serve it.
      return [...when(!backend, 'createBackend'), ...when(!served, 'serve'), ...SWAP_BACK];
    case 'astray':
      return [...when(!backend, 'createBackend'), ...SWAP_BACK];
    case 'own':
      return [...when(loaded, 'clear'), ...when(served, 'withdraw'), ...when(backend, 'removeBackend')];
    case 'absent':
      return [...when(served, 'withdraw'), ...when(backend, 'removeBackend')];
    default:
      return unreachable(volume);
  }
}

function when(needed: boolean, step: LiveStep): LiveStep[] {
  return needed ? [step] : [];
}
