/** Makes the legs of a mirror equal while it is in use: copies the first leg to the others, region by region
 *  from the start, so that all that is copied lies below one mark.
 *
 *  A change to the region being copied waits for its end. A change to a later region goes to the first leg alone;
 *  those that are under way when the copying of a region begins are waited for, by epochs: each change
 *  belongs to the epoch in which it began, a copy begins the next one and waits for the last to drain. */

import { BioQueue, READ, WRITE, runBio } from '../block/bio.ts';
import type { Bio, Op } from '../block/bio.ts';
import { NO_MEMORY } from '../io/arena.ts';
import { BlksnapError } from '../util/errors.ts';
import { KIB } from '../util/units.ts';
import type { TargetContext } from './target.ts';
import type { Leg } from './targets/mirror.ts';

const COPY_BYTES = 256 * KIB;
/** `progress` of a change that is in no epoch. */
const NO_EPOCH = -1;

interface SyncOptions {
  readonly regionBytes: number;
  /** The legs are equal already. */
  readonly equal: boolean;
  /** Takes a change that was held. */
  readonly release: (bio: Bio) => void;
}

export class RegionSync {
  readonly #context: TargetContext;
  readonly #legs: readonly Leg[];
  readonly #o: SyncOptions;
  readonly #regions: number;
  /** Regions below are copied. */
  #done: number;
  /** The region being copied, or -1. */
  #copying = -1;
  readonly #held = new BioQueue();
  /** Changes under way by epoch (modulo 2). */
  readonly #underWay = [0, 0];
  #epoch = 0;
  #drained: (() => void) | null = null;
  #stopping = false;
  #running: Promise<void> | null = null;
  #bufferAt = NO_MEMORY;

  /** Errors: ENOMEM when the arena has no room for the copy's buffer. */
  constructor(context: TargetContext, legs: readonly Leg[], options: SyncOptions) {
    this.#context = context;
    this.#legs = legs;
    this.#o = options;
    this.#regions = Math.ceil(context.length / options.regionBytes);
    this.#done = options.equal ? this.#regions : 0;
    if (options.equal) return;
    this.#bufferAt = context.reactor.arena.allocate(COPY_BYTES);
    if (this.#bufferAt === NO_MEMORY)
      throw new BlksnapError('ENOMEM', 'Cannot make a mirror: the arena has no room for its copy buffer');
  }

  /** `COPIED/ALL`, as status lines have it. */
  get progress(): string {
    return `${this.#done}/${this.#regions}`;
  }

  /** Whether the region of the offset is equal on all legs. */
  copied(offset: number): boolean {
    return offset < this.#done * this.#o.regionBytes;
  }

  runAt(offset: number): number {
    const { regionBytes } = this.#o;
    return this.#done === this.#regions ? Infinity : regionBytes - (offset % regionBytes);
  }

  /** Keeps a change to the region that is being copied. */
  hold(bio: Bio): boolean {
    if (this.#copying < 0 || Math.floor(bio.offset / this.#o.regionBytes) !== this.#copying) return false;
    this.#held.push(bio);
    return true;
  }

  /** A change begins; one that is not for all legs belongs to an epoch. */
  begin(bio: Bio, firstOnly: boolean): void {
    bio.progress = firstOnly ? this.#epoch : NO_EPOCH;
    if (firstOnly) this.#underWay[this.#epoch]!++;
  }

  end(bio: Bio): void {
    const epoch = bio.progress;
    if (epoch === NO_EPOCH) return;
    this.#underWay[epoch]!--;
    if (epoch !== this.#epoch && this.#underWay[epoch] === 0) this.#drained?.();
  }

  start(): void {
    this.#stopping = false;
    if (this.#done < this.#regions) this.#running ??= this.#run().finally(() => (this.#running = null));
  }

  /** Ends after the region that is being copied. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#running;
  }

  async #run(): Promise<void> {
    while (!this.#stopping && this.#done < this.#regions) {
      this.#copying = this.#done;
      await this.#drainEpoch();
      const good = await this.#copyRegion(this.#copying * this.#o.regionBytes);
      this.#copying = -1;
      if (good) this.#done++;
      for (let left = this.#held.length; left > 0; left--) this.#o.release(this.#held.shift()!);
      if (!good) return;
    }
    if (this.#done === this.#regions) this.close();
  }

  async #drainEpoch(): Promise<void> {
    const last = this.#epoch;
    this.#epoch = 1 - last;
    if (this.#underWay[last]! > 0) await new Promise<void>((resolve) => (this.#drained = resolve));
    this.#drained = null;
  }

  /** Whether the region is equal on all legs that are left, and there are any. */
  async #copyRegion(start: number): Promise<boolean> {
    const [first, ...others] = this.#legs;
    const end = Math.min(start + this.#o.regionBytes, this.#context.length);
    for (let offset = start; offset < end; offset += COPY_BYTES) {
      const length = Math.min(COPY_BYTES, end - offset);
      const targets = others.filter(({ current }) => current);
      if (targets.length === 0) return false;
      if ((await this.#io(READ, first!, offset, length)) !== 0) {
        first!.health = 'R';
        return false;
      }
      const copy = async (leg: Leg): Promise<void> => {
        if ((await this.#io(WRITE, leg, offset, length)) !== 0) leg.health = 'S';
      };
      await Promise.all(targets.map(copy));
    }
    return others.some(({ current }) => current);
  }

  #io(op: Op, leg: Leg, offset: number, length: number): Promise<number> {
    return runBio(this.#context.pool, leg.port, { op, offset, length, at: this.#bufferAt });
  }

  /** Gives the buffer back. Nothing is being copied. Safe to call twice. */
  close(): void {
    if (this.#bufferAt !== NO_MEMORY) this.#context.reactor.arena.release(this.#bufferAt);
    this.#bufferAt = NO_MEMORY;
  }
}
