/** Work that somebody may end early, by an AbortSignal. */

import { BlksnapError } from './errors.ts';

/** Why what the signal ended has ended: the signal's reason where that is an error of ours, else ECANCELED. */
export function cancellation(signal: AbortSignal | undefined): BlksnapError {
  const reason: unknown = signal?.reason;
  return reason instanceof BlksnapError ? reason : new BlksnapError('ECANCELED', 'Cancelled');
}

/** Errors: as `cancellation`. */
export function checkGoingOn(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw cancellation(signal);
}

/** Calls `end` when the signal is aborted, at once if it is; what is returned takes that back. */
export function whenAborted(signal: AbortSignal | undefined, end: () => void): () => void {
  if (signal?.aborted === true) end();
  signal?.addEventListener('abort', end, { once: true });
  return () => signal?.removeEventListener('abort', end);
}
