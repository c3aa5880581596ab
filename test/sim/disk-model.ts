/** What a disk must hold: after every acknowledged write, and after a power loss.
 *
 *  A plain array, and a list of the changes since then. A change that failed or was cut off leaves each of its bytes
 *  old or new; what a flush or FUA has acknowledged does not come back older. */

const SECTOR = 512;

export interface Range {
  readonly offset: number;
  readonly length: number;
}

/** A write, discard or writeZeroes of a disk. */
export interface Change extends Range {
  readonly data: Uint8Array;
  readonly fua: boolean;
  /** Its answer comes over a socket: it may be in effect long before. */
  readonly remote: boolean;
  readonly startedAt: number;
  /** When it was acknowledged: Infinity while it is under way, NaN when it failed. */
  endedAt: number;
}

export function overlaps(a: Range, b: Range): boolean {
  return a.offset < b.offset + b.length && b.offset < a.offset + a.length;
}

export class DiskModel {
  readonly name: string;
  /** With every change that was acknowledged, in full. */
  content: Uint8Array;
  /** On the platter for certain, and per sector the change that put it there. */
  #durable: Uint8Array;
  #durableSince: Float64Array;
  /** Changes that a power loss may take back. */
  #volatile: Change[] = [];
  /** Changes under way, or that failed: each byte is old or new. */
  #uncertain: Change[] = [];
  readonly #listeners = new Set<(change: Change) => void>();
  /** When a sync failed: the device promises nothing any more. Infinity while none has. */
  unreliableSince = Infinity;
  /** Whoever would have heard of it was cut off. */
  maybeUnreliable = false;

  constructor(name: string, content: Uint8Array) {
    this.name = name;
    this.content = content.slice();
    this.#durable = content.slice();
    this.#durableSince = new Float64Array(Math.ceil(content.length / SECTOR));
  }

  get unreliable(): boolean {
    return this.unreliableSince !== Infinity;
  }

  get uncertain(): readonly Change[] {
    return this.#uncertain;
  }

  /** Tells of every change that starts, until the returned function is called. */
  listen(listener: (change: Change) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Whoever listened is gone. */
  deafen(): void {
    this.#listeners.clear();
  }

  started(change: Change): void {
    for (const listener of this.#listeners) listener(change);
    this.#volatile.push(change);
    this.#uncertain.push(change);
  }

  /** It never began after all. */
  cancelled(change: Change): void {
    this.#volatile = this.#volatile.filter((other) => other !== change);
    this.#uncertain = this.#uncertain.filter((other) => other !== change);
  }

  ended(change: Change, ok: boolean, now: number): void {
    change.endedAt = ok ? now : Number.NaN;
    if (!ok) return;
    this.#uncertain = this.#uncertain.filter((other) => other !== change);
    this.content.set(change.data, change.offset);
    if (change.fua && !this.unreliable) this.#settle(change);
  }

  /** A flush that was begun then has succeeded. */
  flushed(startedAt: number): void {
    for (const change of this.#volatile.filter(({ endedAt }) => endedAt < startedAt)) this.#settle(change);
    this.#volatile = this.#volatile.filter(({ endedAt }) => !(endedAt < startedAt));
  }

  #settle({ offset, length, data, startedAt }: Change): void {
    for (let done = 0; done < length; done += SECTOR) {
      const sector = (offset + done) / SECTOR;
      if (startedAt < this.#durableSince[sector]!) continue;
      this.#durableSince[sector] = startedAt;
      this.#durable.set(data.subarray(done, done + SECTOR), offset + done);
    }
  }

  /** Takes over what uncertain changes left. Throws when a byte is neither old nor new. */
  adopt(actual: Uint8Array): void {
    const changes = this.#uncertain.splice(0);
    const before = this.content.slice();
    for (const { offset, length } of changes) {
      for (let at = offset; at < offset + length; at++) {
        const value = actual[at]!;
        const known = (change: Change): boolean =>
          at >= change.offset && at < change.offset + change.length && change.data[at - change.offset] === value;
        if (value !== before[at] && !changes.some(known))
          throw new Error(`${this.name}: byte ${at} is neither old nor new after a change that was cut off`);
        this.content[at] = value;
      }
    }
  }

  /** The daemon was killed, and opens the device anew. What a failed sync has dropped may never become durable. */
  reopened(actual: Uint8Array): void {
    this.adopt(actual);
    if (this.unreliable) for (const change of this.#volatile) change.endedAt = Number.NaN;
    this.unreliableSince = Infinity;
    this.maybeUnreliable = false;
  }

  /** The machine stopped. Throws when something durable is lost. */
  lostPower(actual: Uint8Array): void {
    for (let sector = 0; sector * SECTOR < actual.length; sector++) {
      const at = sector * SECTOR;
      const since = this.#durableSince[sector]!;
      const versions = this.#volatile
        .filter((change) => overlaps(change, { offset: at, length: SECTOR }) && change.startedAt > since)
        .map((change) => ({ data: change.data, shift: at - change.offset }));
      for (let i = 0; i < SECTOR; i++) {
        const value = actual[at + i]!;
        if (value === this.#durable[at + i] || versions.some(({ data, shift }) => data[shift + i] === value)) continue;
        throw new Error(`${this.name}: byte ${at + i} was flushed, and is lost after a power loss`);
      }
    }
    this.restart(actual);
    this.unreliableSince = Infinity;
    this.maybeUnreliable = false;
  }

  /** A new beginning: all of it is durable now. */
  restart(actual: Uint8Array): void {
    this.content = actual.slice();
    this.#durable = actual.slice();
    this.#durableSince = new Float64Array(Math.ceil(actual.length / SECTOR));
    this.#volatile = [];
    this.#uncertain = [];
  }
}
