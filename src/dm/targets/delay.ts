/** delay: holds bios back for a time, and may send writes and flushes elsewhere than reads.
 *
 *      START LENGTH delay DEVICE SECTOR MS [DEVICE SECTOR MS [DEVICE SECTOR MS]]
 *
 *  One set is for everything; the second is for writes, discards, zeroing and flushes; the third for flushes
 *  alone. Status: how many reads, writes and flushes are held back. A suspend lets all of them go at once. */

import { DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, BioQueue } from '../../block/bio.ts';
import type { Bio } from '../../block/bio.ts';
import type { Extent } from '../../block/device.ts';
import type { Reactor } from '../../io/reactor.ts';
import { unreachable } from '../../util/assert.ts';
import type { TargetArgs } from '../args.ts';
import { Target } from '../target.ts';
import type { DevicePort, TargetContext, TargetType } from '../target.ts';

const MAX_DELAY_MS = 2 ** 31 - 1;

interface DelaySet {
  readonly port: DevicePort;
  readonly delayMs: number;
}

/** Bios of one class. All wait equally long, so the first in is the first that is due. */
class DelayLine {
  readonly set: DelaySet;
  readonly #reactor: Reactor;
  readonly #queue = new BioQueue();
  #timer = -1;
  readonly #due = { complete: (): void => this.#release() };

  constructor(set: DelaySet, reactor: Reactor) {
    this.set = set;
    this.#reactor = reactor;
  }

  get length(): number {
    return this.#queue.length;
  }

  push(bio: Bio): void {
    // The device that the bio goes to next sets `progress` anew.
    bio.progress = this.#reactor.now() + this.set.delayMs;
    this.#queue.push(bio);
    if (this.#timer === -1) this.#arm(this.set.delayMs);
  }

  #arm(delayMs: number): void {
    this.#timer = this.#reactor.timer(delayMs, this.#due);
  }

  #release(): void {
    this.#timer = -1;
    const now = this.#reactor.now();
    for (let bio = this.#queue.peek(); bio !== null && bio.progress <= now; bio = this.#queue.peek())
      this.#submitFirst();
    const next = this.#queue.peek();
    if (next !== null && this.#timer === -1) this.#arm(Math.max(1, next.progress - now));
  }

  releaseAll(): void {
    if (this.#timer !== -1) this.#reactor.cancelTimer(this.#timer);
    this.#timer = -1;
    // No more than there are now: whoever hears of an end may submit again.
    for (let left = this.#queue.length; left > 0; left--) this.#submitFirst();
  }

  #submitFirst(): void {
    const bio = this.#queue.shift()!;
    bio.progress = 0;
    this.set.port.submit(bio);
  }
}

class Delay extends Target {
  readonly type = 'delay';
  readonly #sets: readonly DelaySet[];
  readonly #reads: DelayLine;
  readonly #writes: DelayLine;
  readonly #flushes: DelayLine;
  #passing = false;

  constructor(context: TargetContext, sets: readonly DelaySet[]) {
    super(sets.map(({ port }) => port));
    const [read, write = read!, flush = write] = sets;
    this.#sets = sets;
    this.#reads = new DelayLine(read!, context.reactor);
    this.#writes = new DelayLine(write, context.reactor);
    this.#flushes = new DelayLine(flush, context.reactor);
  }

  table(): string {
    return this.#sets.map(({ port, delayMs }) => `${port.words} ${delayMs}`).join(' ');
  }

  override status(): string {
    return `${this.#reads.length} ${this.#writes.length} ${this.#flushes.length}`;
  }

  submit(bio: Bio): void {
    const line = this.#line(bio);
    if (this.#passing || line.set.delayMs === 0) line.set.port.submit(bio);
    else line.push(bio);
  }

  #line(bio: Bio): DelayLine {
    switch (bio.op) {
      case READ:
        return this.#reads;
      case WRITE:
      case DISCARD:
      case WRITE_ZEROES:
        return this.#writes;
      case FLUSH:
        return this.#flushes;
      default:
        return unreachable(bio.op);
    }
  }

  override extents(offset: number, length: number): Promise<Extent[]> {
    return this.#sets[0]!.port.extents(offset, length);
  }

  override async suspend(): Promise<void> {
    this.#passing = true;
    for (const line of [this.#reads, this.#writes, this.#flushes]) line.releaseAll();
  }

  override resume(): void {
    this.#passing = false;
  }
}

function takeSet(args: TargetArgs, context: TargetContext): DelaySet {
  const port = args.port(context.length);
  return { port, delayMs: args.integer('the delay in milliseconds', { min: 0, max: MAX_DELAY_MS }) };
}

export const delay: TargetType = (args, context) => {
  const sets = [takeSet(args, context)];
  while (args.left > 0 && sets.length < 3) sets.push(takeSet(args, context));
  args.end();
  return new Delay(context, sets);
};
