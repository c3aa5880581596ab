/** Bounce buffers for O_DIRECT: data whose memory is not aligned goes piece by piece through slots that are.
 *
 *  The slots are borrowed once, when the device is opened, so that a bio never waits for memory that
 *  the bios behind it hold. A bio takes one slot; when all are taken, it waits its turn. */

import { assert } from '../util/assert.ts';
import { BlksnapError, ERRNO } from '../util/errors.ts';
import { KIB } from '../util/units.ts';
import { NO_MEMORY } from '../io/arena.ts';
import type { Reactor } from '../io/reactor.ts';
import { BioQueue, FUA, READ } from './bio.ts';
import type { Bio, BioDriver } from './bio.ts';

const SLOT_BYTES = 64 * KIB;
const SLOTS = 8;

type BioEnd = (bio: Bio, result: number) => void;

export class BounceSlots {
  readonly #reactor: Reactor;
  readonly #at: number;
  readonly #free: Slot[] = [];
  readonly #waiting = new BioQueue();

  /** Errors: ENOMEM when the arena has no room for the slots. */
  constructor(reactor: Reactor, fd: number, end: BioEnd) {
    this.#reactor = reactor;
    this.#at = reactor.arena.allocate(SLOTS * SLOT_BYTES);
    if (this.#at === NO_MEMORY) {
      throw new BlksnapError(
        'ENOMEM',
        `Cannot borrow ${SLOTS * SLOT_BYTES} bytes for bounce buffers: the arena is full`,
      );
    }
    const ended: BioEnd = (bio, result) => {
      this.#next();
      end(bio, result);
    };
    for (let i = 0; i < SLOTS; i++) {
      this.#free.push(new Slot(reactor, fd, this.#at + i * SLOT_BYTES, (slot) => this.#free.push(slot), ended));
    }
  }

  submit(bio: Bio): void {
    const slot = this.#free.pop();
    if (slot === undefined) this.#waiting.push(bio);
    else slot.start(bio);
  }

  #next(): void {
    const bio = this.#waiting.shift();
    if (bio !== null) this.#free.pop()!.start(bio);
  }

  close(): void {
    assert(this.#free.length === SLOTS, 'no bounce buffer is in use');
    this.#reactor.arena.release(this.#at);
  }
}

class Slot implements BioDriver {
  readonly #reactor: Reactor;
  readonly #fd: number;
  readonly #at: number;
  readonly #giveBack: (slot: Slot) => void;
  readonly #end: BioEnd;

  constructor(reactor: Reactor, fd: number, at: number, giveBack: (slot: Slot) => void, end: BioEnd) {
    this.#reactor = reactor;
    this.#fd = fd;
    this.#at = at;
    this.#giveBack = giveBack;
    this.#end = end;
  }

  start(bio: Bio): void {
    bio.driver = this;
    const done = bio.progress;
    const length = Math.min(SLOT_BYTES, bio.length - done);
    if (bio.op === READ) {
      this.#reactor.read(this.#fd, this.#at, length, bio.offset + done, bio);
    } else {
      this.#reactor.arena.bytes.copyWithin(this.#at, bio.at + done, bio.at + done + length);
      this.#reactor.write(this.#fd, this.#at, length, bio.offset + done, (bio.flags & FUA) !== 0, bio);
    }
  }

  bioProgress(bio: Bio, result: number): void {
    if (result > 0) {
      if (bio.op === READ) this.#reactor.arena.bytes.copyWithin(bio.at + bio.progress, this.#at, this.#at + result);
      bio.progress += result;
    }
    if (bio.progress < bio.length && (result > 0 || result === -ERRNO.EINTR)) {
      this.start(bio);
      return;
    }
    this.#giveBack(this);
    this.#end(bio, bio.progress === bio.length ? 0 : result < 0 ? result : -ERRNO.EIO);
  }
}
