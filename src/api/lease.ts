/** Keeps a snapshot with a lease alive for as long as this process is. Renewals go on beside whatever else it does;
 *  one that fails is tried again at the next turn. A lease that was lost shows in what reads the image, unless the daemon
 *  says nothing at all. */

import { toBlksnapError } from '../util/errors.ts';
import type { BlksnapError } from '../util/errors.ts';
import type { Client } from './client.ts';

/** Long enough for a machine that stalls, short enough for storage that nobody reads any more. */
export const LEASE_MS = 60_000;
const RENEWALS_PER_LEASE = 6;

export interface LeaseOptions {
  readonly leaseMs?: number;
  /** Hears that nothing was heard of the daemon for as long as the lease. */
  readonly onSilence?: (cause: BlksnapError) => void;
}

export class LeaseKeeper {
  readonly #timer: NodeJS.Timeout;
  #renewedMs = performance.now();

  constructor(client: Client, id: string, { leaseMs = LEASE_MS, onSilence }: LeaseOptions = {}) {
    const failed = (cause: unknown): void => {
      const failure = toBlksnapError(cause);
      if (failure.code === 'ETIMEDOUT' && performance.now() - this.#renewedMs >= leaseMs) onSilence?.(failure);
    };
    const renew = (): void => void client.renewSnapshot(id).then(() => (this.#renewedMs = performance.now()), failed);
    this.#timer = setInterval(renew, leaseMs / RENEWALS_PER_LEASE).unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}
