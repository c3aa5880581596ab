/** Writes with one wrong byte: the write as it is, then over it the block of the byte, changed in a copy.
 *  The data of a bio is its submitter's and must not change. One at a time. */

import { BioQueue, WRITE } from '../block/bio.ts';
import type { Bio, BioOwner } from '../block/bio.ts';
import { ARENA_BLOCK, NO_MEMORY } from '../io/arena.ts';
import { BlksnapError } from '../util/errors.ts';
import { alignDown } from '../util/units.ts';
import type { DevicePort, TargetContext } from './target.ts';

export class ByteCorruptor implements BioOwner {
  readonly #context: TargetContext;
  readonly #port: DevicePort;
  /** From 0. */
  readonly #byte: number;
  readonly #value: number;
  readonly #waiting = new BioQueue();
  readonly #copyAt: number;
  #closed = false;

  /** Errors: ENOMEM when the arena is full. */
  constructor(context: TargetContext, port: DevicePort, corruption: { readonly nth: number; readonly value: number }) {
    this.#context = context;
    this.#port = port;
    this.#byte = corruption.nth - 1;
    this.#value = corruption.value;
    this.#copyAt = context.reactor.arena.allocate(ARENA_BLOCK);
    if (this.#copyAt === NO_MEMORY)
      throw new BlksnapError('ENOMEM', 'Cannot make a target that corrupts writes: the arena is full');
  }

  submit(bio: Bio): void {
    if (this.#byte >= bio.length) {
      this.#port.submit(bio);
      return;
    }
    this.#waiting.push(bio);
    if (this.#waiting.length === 1) this.#start(bio);
  }

  #start(bio: Bio): void {
    const { reactor, pool } = this.#context;
    const block = Math.min(this.#port.device.logicalBlockSize, ARENA_BLOCK);
    const from = alignDown(this.#byte, block);
    const { bytes } = reactor.arena;
    bytes.copyWithin(this.#copyAt, bio.at + from, bio.at + from + block);
    bytes[this.#copyAt + this.#byte - from] = this.#value;
    const whole = pool.get(WRITE, bio.offset, bio.length, bio.at, bio.flags, this);
    whole.tag = { patch: pool.get(WRITE, bio.offset + from, block, this.#copyAt, bio.flags, this) };
    this.#port.submit(whole);
  }

  /** First the whole write, then the corrupted block of it. */
  bioEnded(part: Bio): void {
    const { pool } = this.#context;
    const { status } = part;
    const patch = (part.tag as { readonly patch: Bio } | null)?.patch ?? null;
    pool.put(part);
    if (patch !== null && status === 0) {
      this.#port.submit(patch);
      return;
    }
    if (patch !== null) pool.put(patch);
    const bio = this.#waiting.shift()!;
    const next = this.#waiting.peek();
    if (next !== null) this.#start(next);
    bio.status = status;
    bio.end(status);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#context.reactor.arena.release(this.#copyAt);
  }
}
