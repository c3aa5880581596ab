/** Keeps a snapshot with a lease alive for as long as this process is. Renewals go on beside whatever else it does;
 *  one that fails is tried again at the next turn, and a lease that was lost shows in what reads the image. */

import type { Client } from './client.ts';

/** Long enough for a machine that stalls, short enough for storage that nobody reads any more. */
export const LEASE_MS = 60_000;
const RENEWALS_PER_LEASE = 6;

export class LeaseKeeper {
  readonly #timer: NodeJS.Timeout;

  constructor(client: Client, id: string, leaseMs: number = LEASE_MS) {
    const renew = (): void => void client.renewSnapshot(id).catch(() => {});
    this.#timer = setInterval(renew, leaseMs / RENEWALS_PER_LEASE).unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}
