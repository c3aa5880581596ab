/** Tells a daemon that takes its time from one that is stopped or hung. A request may take long: a freeze hook runs, data is
 *  copied, an event is waited for. So requests have no limit; but a daemon that is silent for a while is asked whether it is
 *  there, and one that does not even answer that is given up.
 *
 *  The seconds are counted one by one: a client that was stopped itself does not take its own pause for the daemon's. */

import type { ClientRequest, IncomingMessage } from 'node:http';
import { BlksnapError } from '../util/errors.ts';

const SECOND_MS = 1000;
const ASK_AFTER_SECONDS = 10;
const GIVE_UP_AFTER_SECONDS = 30;

/** Ends the request with ETIMEDOUT when its daemon is silent. `ask` sends a question to which any answer will do. */
export function endWhenSilent(
  request: ClientRequest,
  { place, ask }: { readonly place: string; readonly ask: () => ClientRequest },
): void {
  let silentSeconds = 0;
  let heardBytes = 0;
  let response: IncomingMessage | null = null;
  let question: ClientRequest | null = null;
  const heard = (): void => void (silentSeconds = 0);
  const count = (): void => {
    const bytes = request.socket?.bytesRead ?? 0;
    if (bytes !== heardBytes) heard();
    heardBytes = bytes;
    silentSeconds++;
    if (silentSeconds === ASK_AFTER_SECONDS) {
      question?.destroy();
      // A question that is not heard is silence, too.
      question = ask()
        .once('response', heard)
        .on('error', () => {});
    }
    if (silentSeconds >= GIVE_UP_AFTER_SECONDS) (response ?? request).destroy(silence(place));
  };
  const timer = setInterval(count, SECOND_MS).unref();
  request.once('response', (begun) => (response = begun));
  request.once('close', () => {
    clearInterval(timer);
    question?.destroy();
  });
}

function silence(place: string): BlksnapError {
  return new BlksnapError(
    'ETIMEDOUT',
    `The daemon at ${place} does not answer: nothing was heard of it for ${GIVE_UP_AFTER_SECONDS} s. It is stopped or hung, or its ` +
      'machine is; whether it did what it was asked for, `blksnap status` and `blksnap list` tell when it answers again',
  );
}
