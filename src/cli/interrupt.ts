/** Ctrl-C as an AbortSignal: the first asks a command to stop and clean up, the second kills it. */

import { whenAborted } from '../util/cancel.ts';

export interface Interrupt {
  readonly signal: AbortSignal;
  /** Gives the signals back. */
  release(): void;
}

/** Aborts some time after `signal`: what a command is in the midst of then may end in order, and is not waited for for ever. */
export function soonAfter(signal: AbortSignal, ms: number): AbortSignal {
  const later = new AbortController();
  whenAborted(signal, () => void setTimeout(() => later.abort(signal.reason), ms).unref());
  return later.signal;
}

export function onInterrupt(): Interrupt {
  const controller = new AbortController();
  const abort = (): void => controller.abort();
  process.once('SIGINT', abort);
  process.once('SIGTERM', abort);
  return {
    signal: controller.signal,
    release() {
      process.off('SIGINT', abort);
      process.off('SIGTERM', abort);
    },
  };
}
