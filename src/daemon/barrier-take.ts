/** A take of disks on several I/O threads: each step on all threads before the next one on any, so that all images
 *  show one instant. An error or a timeout anywhere undoes it everywhere. */

import { BlksnapError } from '../util/errors.ts';
import { inTime } from '../util/in-time.ts';
import type { IoThread } from './io-thread-client.ts';
import type { IoCalls, SnapshotInfo } from './io-protocol.ts';

/** How long the disks of the other threads may wait for one whose bios do not end. */
const FREEZE_LIMIT_MS = 10_000;

export interface TakePart {
  readonly thread: Pick<IoThread, 'call'>;
  readonly args: IoCalls['planSnapshot']['args'];
}

export interface BarrierTaken {
  readonly parts: SnapshotInfo[];
  /** From the first freeze to the last thaw. */
  readonly heldMs: number;
}

export async function takeAcross(parts: readonly TakePart[], freezeLimitMs = FREEZE_LIMIT_MS): Promise<BarrierTaken> {
  const onAll = <T>(step: (thread: TakePart['thread'], args: TakePart['args']) => Promise<T>): Promise<T[]> =>
    allEnded(parts.map(({ thread, args }) => step(thread, args)));
  try {
    await onAll((thread, args) => thread.call('planSnapshot', args));
    const began = performance.now();
    // What is still freezing after the time is thawed by the undoing.
    await inTime(
      onAll((thread, { id }) => thread.call('freezeSnapshot', { id })),
      freezeLimitMs,
      () => late(freezeLimitMs),
    );
    await onAll((thread, { id }) => thread.call('switchSnapshot', { id }));
    const createdAt = Date.now();
    const taken = await onAll((thread, { id }) => thread.call('finishSnapshot', { id, createdAt }));
    const heldMs = performance.now() - began;
    await onAll(async (thread, { id, kept }) => kept && (await thread.call('completeSnapshot', { id, heldMs })));
    return { parts: taken, heldMs };
  } catch (cause) {
    // What cannot be undone is on a thread that has died. What went wrong first is what counts.
    for (const { thread, args } of parts) {
      const { id } = args;
      await thread.call('abandonSnapshot', { id }).catch(() => {});
      // A thread that had finished when another one died.
      await thread.call('destroySnapshot', { id }).catch(() => {});
    }
    throw cause;
  }
}

/** A step has ended on every thread before it is undone on any. Errors: the first. */
async function allEnded<T>(steps: ReadonlyArray<Promise<T>>): Promise<T[]> {
  await Promise.allSettled(steps);
  return await Promise.all(steps);
}

function late(limitMs: number): BlksnapError {
  return new BlksnapError(
    'ETIMEDOUT',
    `Cannot take the snapshot: requests of its disks did not end in ${limitMs} ms; resume what is suspended below them, or take the slow disk by itself`,
  );
}
