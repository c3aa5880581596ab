/** Freeze hooks: a command before a take and one after it, which quiesce whoever writes to the disks (fsfreeze,
 *  a guest agent, a database) so that the image is consistent for them too.
 *
 *      freeze --> take --> thaw
 *
 *  The thaw always runs, also when the freeze or the take failed or took too long: nothing stays frozen
 *  because of us. A freeze that fails, or is not over in time, means no snapshot. Runs on the control thread;
 *  disks serve as ever until the take itself, so that what a freeze flushes arrives. */

import { spawn } from 'node:child_process';
import { BlksnapError } from '../util/errors.ts';
import { inTime } from '../util/in-time.ts';

export const FREEZE_TIMEOUT_MS = 30_000;
/** A thaw gets at least this long, however short the freeze had. */
const THAW_TIMEOUT_MS = 30_000;
/** How much of what a hook says is told on. */
const WORDS_LIMIT = 500;

export interface FreezeHooks {
  /** Commands for the shell. */
  readonly freeze: string;
  readonly thaw: string;
  /** From the start of the freeze to the end of the take. */
  readonly timeoutMs: number;
}

export interface FreezeReport {
  /** From the start of the freeze to the end of the thaw. */
  readonly frozenMs: number;
  /** Why the thaw failed, or null. The snapshot is good all the same. */
  readonly thawError: string | null;
}

/** Runs the take between the hooks. `undo` takes back a take that ended too late.
 *  Errors: ECANCELED when the freeze failed; ETIMEDOUT; what the take fails with. */
export async function takeFrozen<Taken>(
  hooks: FreezeHooks,
  disks: readonly string[],
  steps: { readonly take: () => Promise<Taken>; readonly undo: (taken: Taken) => Promise<void> },
): Promise<{ readonly taken: Taken; readonly report: FreezeReport }> {
  const began = performance.now();
  const leftMs = (): number => hooks.timeoutMs - (performance.now() - began);
  let outcome: { readonly taken: Taken } | { readonly cause: unknown };
  try {
    const failure = await runHook('freeze', hooks.freeze, disks, hooks.timeoutMs);
    if (failure !== null) throw failure;
    outcome = { taken: await takenInTime(steps, leftMs(), hooks.timeoutMs) };
  } catch (cause) {
    outcome = { cause };
  }
  const thawFailure = await runHook('thaw', hooks.thaw, disks, Math.max(THAW_TIMEOUT_MS, hooks.timeoutMs));
  const report = { frozenMs: performance.now() - began, thawError: thawFailure?.message ?? null };
  if ('taken' in outcome) return { taken: outcome.taken, report };
  if (thawFailure === null || !(outcome.cause instanceof BlksnapError)) throw outcome.cause;
  const { code, message } = outcome.cause;
  throw new BlksnapError(code, `${message}. And then: ${thawFailure.message}`, { cause: outcome.cause });
}

/** The take's result, if it comes in time; else it is undone when it comes. */
async function takenInTime<Taken>(
  { take, undo }: { readonly take: () => Promise<Taken>; readonly undo: (taken: Taken) => Promise<void> },
  leftMs: number,
  timeoutMs: number,
): Promise<Taken> {
  const taking = take();
  try {
    return await inTime(taking, leftMs, () => tooLate(timeoutMs));
  } catch (cause) {
    // A snapshot that cannot be destroyed is among those that are held, for its user to see.
    taking.then(undo).catch(() => {});
    throw cause;
  }
}

function tooLate(timeoutMs: number): BlksnapError {
  const message = `Cannot take a snapshot: it was not taken ${timeoutMs} ms after the freeze began`;
  return new BlksnapError('ETIMEDOUT', message);
}

/** Runs a command to its end, or ends it and all it started. Null, or why it failed. */
async function runHook(
  kind: 'freeze' | 'thaw',
  command: string,
  disks: readonly string[],
  timeoutMs: number,
): Promise<BlksnapError | null> {
  const env = { ...process.env, BLKSNAP_HOOK: kind, BLKSNAP_DISKS: disks.join(' ') };
  // A process group of its own, so that it can be ended as a whole.
  const child = spawn('/bin/sh', ['-c', command], { env, detached: true, stdio: ['ignore', 'ignore', 'pipe'] });
  let words = '';
  child.stderr.on('data', (data: Buffer) => (words = (words + data.toString()).slice(-WORDS_LIMIT)));
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.stderr.destroy();
    if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
  }, timeoutMs);
  const ended = await new Promise<string>((resolve) => {
    child.once('error', (cause) => resolve(`could not be started (${cause.message})`));
    child.once('exit', (code, signal) =>
      resolve(code === 0 ? '' : signal === null ? `ended with ${code}` : `was ended by ${signal}`),
    );
  });
  clearTimeout(timer);
  child.stderr.destroy();
  if (late)
    return new BlksnapError(
      'ETIMEDOUT',
      `Cannot ${kind}: "${command}" was not over after ${timeoutMs} ms, and was ended`,
    );
  if (ended === '') return null;
  return new BlksnapError(
    'ECANCELED',
    `Cannot ${kind}: "${command}" ${ended}${words === '' ? '' : `: ${words.trim()}`}`,
  );
}
