/** A mapped device: a block device that a table describes, and that can get another table while it is in use.
 *
 *      load ─► inactive table ─► resume ─► live table
 *      suspend: holds new bios, waits for those under way;  resume: swaps the tables, lets them go in order
 *
 *  Hot path: submit, bioEnded. A bio is cut where targets and their pieces end; each part is a pooled bio of its own, also
 *  the only one, because what is below may be a disk with a gate. The bio's `waiting` counts its parts.
 *
 *  The size is the first table's for good, and no later table may have larger blocks, be read-only where the
 *  first was not, or lack flush or FUA: whoever has the device open was told otherwise. */

import { BioQueue, DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, rangeError } from '../block/bio.ts';
import type { Bio, BioOwner, BioPool } from '../block/bio.ts';
import { pushExtent } from '../block/device.ts';
import type { BlockDevice, Capabilities, Extent } from '../block/device.ts';
import { Ending } from '../block/ending.ts';
import { assert, unreachable } from '../util/assert.ts';
import { BlksnapError, ERRNO } from '../util/errors.ts';
import type { Mapping } from './mapping.ts';
import { SECTOR } from './table.ts';

/** Extents that one call gathers. */
const MAX_EXTENTS = 512;

export class MappedDevice implements BlockDevice, BioOwner {
  readonly name: string;
  readonly size: number;
  readonly logicalBlockSize: number;
  readonly physicalBlockSize: number;
  readonly readOnly: boolean;
  readonly #pool: BioPool;
  readonly #durable: Pick<Capabilities, 'flush' | 'fua'>;
  #live: Mapping;
  #inactive: Mapping | null = null;
  #suspended = false;
  #inFlight = 0;
  readonly #held = new BioQueue();
  readonly #ending = new Ending();
  #idle: (() => void) | null = null;
  #closed = false;

  /** The mapping is the device's from then on. */
  constructor(name: string, mapping: Mapping, pool: BioPool) {
    this.name = name;
    this.#pool = pool;
    this.#live = mapping;
    this.size = mapping.size;
    this.logicalBlockSize = mapping.logicalBlockSize;
    this.physicalBlockSize = mapping.physicalBlockSize;
    this.readOnly = mapping.readOnly;
    this.#durable = mapping.capabilities;
    for (const target of mapping.targets) target.resume();
  }

  get capabilities(): Capabilities {
    return { ...this.#live.capabilities, flush: this.#durable.flush, fua: this.#durable.fua };
  }
  get suspended(): boolean {
    return this.#suspended;
  }
  get hasInactive(): boolean {
    return this.#inactive !== null;
  }
  get inFlight(): number {
    return this.#inFlight;
  }

  // --- bios -----------------------------------------------------------------------------------

  submit(bio: Bio): void {
    if (this.#suspended) {
      this.#held.push(bio);
      return;
    }
    this.#inFlight++;
    bio.status = this.#closed ? ERRNO.ESHUTDOWN : rangeError(bio, this.size, this.readOnly);
    bio.waiting = 1;
    if (bio.status === 0) this.#cut(bio);
    this.#partEnded(bio);
  }

  #cut(bio: Bio): void {
    switch (bio.op) {
      case READ:
      case WRITE:
      case DISCARD:
      case WRITE_ZEROES:
        this.#cutRange(bio);
        return;
      case FLUSH:
        for (const target of this.#live.targets) target.submit(this.#part(bio, 0, 0, 0));
        return;
      default:
        unreachable(bio.op);
    }
  }

  #cutRange(bio: Bio): void {
    const { targets, starts } = this.#live;
    const end = bio.offset + bio.length;
    let from = bio.offset;
    for (let index = this.#live.indexAt(from); from < end; index++) {
      const target = targets[index]!;
      const start = starts[index]!;
      const targetEnd = Math.min(end, starts[index + 1]!);
      while (from < targetEnd) {
        const length = Math.min(targetEnd - from, target.runAt(from - start));
        target.submit(this.#part(bio, from - start, length, bio.at + from - bio.offset));
        from += length;
      }
    }
  }

  #part(bio: Bio, offset: number, length: number, at: number): Bio {
    bio.waiting++;
    const part = this.#pool.get(bio.op, offset, length, at, bio.flags, this);
    part.tag = bio;
    return part;
  }

  /** A part has ended. */
  bioEnded(part: Bio): void {
    const bio = part.tag as Bio;
    if (part.status !== 0) bio.status = part.status;
    this.#pool.put(part);
    this.#partEnded(bio);
  }

  #partEnded(bio: Bio): void {
    if (--bio.waiting > 0) return;
    this.#ending.end(bio, bio.status);
    if (--this.#inFlight === 0 && this.#idle !== null) this.#idle();
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    const list: Extent[] = [];
    const end = offset + length;
    const mapping = this.#live;
    for (let at = offset; at < end && list.length < MAX_EXTENTS && mapping === this.#live;) {
      const index = mapping.indexAt(at);
      const start = mapping.starts[index]!;
      const wanted = Math.min(end, mapping.starts[index + 1]!) - at;
      for (const extent of await mapping.targets[index]!.extents(at - start, wanted)) {
        pushExtent(list, extent.length, extent.hole, extent.zero);
        at += extent.length;
      }
    }
    // Another table came meanwhile: what the old one told is no longer known.
    return mapping === this.#live ? list : [{ length, hole: false, zero: false }];
  }

  // --- tables ---------------------------------------------------------------------------------

  /** The lines of the live table, or of the inactive one; none when there is no such. */
  table(which: 'live' | 'inactive' = 'live'): string[] {
    return (which === 'live' ? this.#live : this.#inactive)?.lines('table') ?? [];
  }

  status(): string[] {
    return this.#live.lines('status');
  }

  /** Sends a message to the target at a sector. Errors: EINVAL. */
  message(sector: number, words: readonly string[]): string {
    if (words.length === 0 || sector < 0 || sector * SECTOR >= this.size) {
      const wrong = words.length === 0 ? 'it is empty' : `there is no sector ${sector}`;
      throw new BlksnapError('EINVAL', `Cannot send a message to mapped device "${this.name}": ${wrong}`);
    }
    return this.#live.targets[this.#live.indexAt(sector * SECTOR)]!.message(words);
  }

  /** Makes the mapping the inactive table, instead of the one that may be there. It is the device's from then on.
   *  Errors: EINVAL when it does not fit the device; the mapping is then closed. */
  async load(mapping: Mapping): Promise<void> {
    const wrong = this.#misfit(mapping);
    if (wrong !== '') {
      await mapping.close();
      throw new BlksnapError('EINVAL', `Cannot load the table into mapped device "${this.name}": ${wrong}`);
    }
    const before = this.#inactive;
    this.#inactive = mapping;
    await before?.close();
  }

  #misfit({ size, logicalBlockSize, readOnly, capabilities }: Mapping): string {
    if (size !== this.size) return `it is for ${size / SECTOR} sectors, want ${this.size / SECTOR}`;
    if (logicalBlockSize > this.logicalBlockSize)
      return `its blocks have ${logicalBlockSize} bytes, want at most ${this.logicalBlockSize}`;
    if (readOnly && !this.readOnly) return 'one of its devices is read-only';
    if ((this.#durable.flush && !capabilities.flush) || (this.#durable.fua && !capabilities.fua))
      return 'one of its devices cannot flush';
    return '';
  }

  /** Drops the inactive table. */
  async clear(): Promise<void> {
    const inactive = this.#inactive;
    this.#inactive = null;
    await inactive?.close();
  }

  /** Holds new bios; resolves when none is under way. */
  async suspend(): Promise<void> {
    this.#suspended = true;
    const quiet = this.#live.targets.map((target) => target.suspend());
    if (this.#inFlight > 0) {
      const before = this.#idle;
      await new Promise<void>((resolve) => {
        this.#idle = () => {
          before?.();
          resolve();
        };
      });
      this.#idle = null;
    }
    await Promise.all(quiet);
  }

  /** Makes the inactive table the live one, if there is one, and lets held bios go in their order. Suspends first.
   *  `swapped` runs when the new table is in its place and no bio has seen it; what it throws takes the swap back. */
  async resume(swapped: () => void = () => {}): Promise<void> {
    const next = this.#inactive;
    if (next !== null) {
      await this.suspend();
      await this.#swap(next, swapped);
    }
    this.#resumeLive();
  }

  #resumeLive(): void {
    for (const target of this.#live.targets) target.resume();
    this.#suspended = false;
    this.#release();
  }

  async #swap(next: Mapping, swapped: () => void): Promise<void> {
    const old = this.#live;
    this.#live = next;
    this.#inactive = null;
    try {
      swapped();
    } catch (cause) {
      this.#live = old;
      this.#inactive = next;
      this.#resumeLive();
      throw cause;
    }
    await old.close();
  }

  #release(): void {
    for (let left = this.#held.length; left > 0 && !this.#suspended; left--) this.submit(this.#held.shift()!);
  }

  /** Ends held bios with ESHUTDOWN, and all that come later. */
  abandon(): void {
    this.#closed = true;
    this.#suspended = false;
    this.#release();
  }

  async close(): Promise<void> {
    this.#closed = true;
    assert(this.#held.length === 0, 'a mapped device closes without held bios');
    if (!this.#suspended) await Promise.all(this.#live.targets.map((target) => target.suspend()));
    await this.clear();
    await this.#live.close();
  }
}
