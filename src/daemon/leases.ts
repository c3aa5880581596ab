/** Leases: what a client must renew for it to stay. A client that was killed cannot clean up after itself; what it
 *  held ends when its lease runs out. Timers keep no process alive. */

export class Leases {
  readonly #onExpired: (id: string) => void;
  readonly #byId = new Map<string, { readonly leaseMs: number; timer: NodeJS.Timeout }>();

  constructor(onExpired: (id: string) => void) {
    this.#onExpired = onExpired;
  }

  /** Begins to count. */
  grant(id: string, leaseMs: number): void {
    this.end(id);
    this.#byId.set(id, { leaseMs, timer: this.#count(id, leaseMs) });
  }

  /** Counts from the beginning again. Nothing happens where there is no lease. */
  renew(id: string): void {
    const lease = this.#byId.get(id);
    if (lease === undefined) return;
    clearTimeout(lease.timer);
    lease.timer = this.#count(id, lease.leaseMs);
  }

  /** What it was for is gone. */
  end(id: string): void {
    clearTimeout(this.#byId.get(id)?.timer);
    this.#byId.delete(id);
  }

  endAll(): void {
    for (const id of this.#byId.keys()) this.end(id);
  }

  /** Milliseconds, or null for what stays without one. */
  of(id: string): number | null {
    return this.#byId.get(id)?.leaseMs ?? null;
  }

  #count(id: string, leaseMs: number): NodeJS.Timeout {
    return setTimeout(() => this.#onExpired(id), leaseMs).unref();
  }
}
