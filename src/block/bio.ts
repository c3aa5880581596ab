/** The bio: one I/O unit on its way through disks, filters and devices.
 *
 *  Hot path. Bios come from a pool and end by callback, as the kernel's `bi_end_io`; a bio that
 *  passes through allocates nothing. Rules:
 *  - Whoever gets a bio by `submit` ends it exactly once, now or later, or submits it on.
 *  - `end` gives it back to its owner at once; the submitter must not touch it afterwards.
 *  - A write's data must not change, and a read's memory must stay lent, until the end. */

import { assert } from '../util/assert.ts';
import { ERRNO } from '../util/errors.ts';
import type { Completion } from '../io/reactor.ts';

export const READ = 0;
export const WRITE = 1;
export const FLUSH = 2;
export const DISCARD = 3;
export const WRITE_ZEROES = 4;
export type Op = typeof READ | typeof WRITE | typeof FLUSH | typeof DISCARD | typeof WRITE_ZEROES;

/** The data is on stable storage when the bio ends (write, writeZeroes, discard). */
export const FUA = 1;
/** writeZeroes must leave the range allocated. */
export const NO_HOLE = 2;
/** writeZeroes must fail with EOPNOTSUPP rather than write data. */
export const FAST_ZERO = 4;

/** Who a bio is given back to. */
export interface BioOwner {
  /** `bio.status` is 0 or an errno. The bio is the owner's again. */
  bioEnded(bio: Bio): void;
}

/** A device that ends bios by reactor operations: hears the result of each. */
export interface BioDriver {
  bioProgress(bio: Bio, result: number): void;
}

/** Somebody who counts bios on their way (a disk's gate). */
export interface BioGate {
  bioLeft(bio: Bio): void;
}

const NOBODY: BioOwner = {
  bioEnded(): void {
    assert(false, 'a pooled bio has no owner');
  },
};

export class Bio implements Completion {
  op: Op = READ;
  flags = 0;
  /** Bytes, multiples of the device's logical block size. */
  offset = 0;
  length = 0;
  /** The data's place in the arena (read, write). */
  at = 0;
  /** 0, or an errno; set by `end`. */
  status = 0;

  owner: BioOwner = NOBODY;
  /** The owner's own: whatever finds its request again. */
  tag: unknown = null;
  /** The device's own: bytes done so far, and who hears the reactor. */
  progress = 0;
  driver: BioDriver | null = null;
  /** Set by the disk the bio entered through. */
  gate: BioGate | null = null;
  /** A filter's own while it holds the bio: how many events it waits for. */
  waiting = 0;
  /** A filter's own while it holds the bio: what it has seen to, and in which of its states that counts. */
  reached = 0;
  era = 0;
  /** Link of a free list or a queue of held bios. */
  next: Bio | null = null;

  /** Ends the bio with 0 or an errno. */
  end(status: number): void {
    this.status = status;
    const gate = this.gate;
    if (gate !== null) {
      this.gate = null;
      gate.bioLeft(this);
    }
    this.owner.bioEnded(this);
  }

  /** The reactor's result of the operation that the driver started. */
  complete(result: number): void {
    this.driver!.bioProgress(this, result);
  }
}

/** What takes bios: devices, disks, and filters in their stack. */
export interface BioSink {
  submit(bio: Bio): void;
}

/** Whether the op changes data: what filters that track or protect data must look at. */
export function changesData(op: Op): boolean {
  switch (op) {
    case READ:
    case FLUSH:
      return false;
    case WRITE:
    case DISCARD:
    case WRITE_ZEROES:
      return true;
  }
}

/** Free bios of one thread. Never shrinks; its size is bounded by what was ever under way at once. */
export class BioPool {
  #free: Bio | null = null;
  #lent = 0;

  /** Bios lent out now. */
  get lent(): number {
    return this.#lent;
  }

  get(op: Op, offset: number, length: number, at: number, flags: number, owner: BioOwner): Bio {
    let bio = this.#free;
    if (bio === null) bio = new Bio();
    else this.#free = bio.next;
    this.#lent++;
    bio.next = null;
    bio.op = op;
    bio.offset = offset;
    bio.length = length;
    bio.at = at;
    bio.flags = flags;
    bio.owner = owner;
    bio.status = 0;
    bio.progress = 0;
    bio.waiting = 0;
    return bio;
  }

  put(bio: Bio): void {
    bio.owner = NOBODY;
    bio.tag = null;
    bio.driver = null;
    bio.next = this.#free;
    this.#free = bio;
    this.#lent--;
  }
}

/** A first-in, first-out queue of held bios, linked through `next`. */
export class BioQueue {
  #head: Bio | null = null;
  #tail: Bio | null = null;
  length = 0;

  push(bio: Bio): void {
    bio.next = null;
    if (this.#tail === null) this.#head = bio;
    else this.#tail.next = bio;
    this.#tail = bio;
    this.length++;
  }

  peek(): Bio | null {
    return this.#head;
  }

  shift(): Bio | null {
    const bio = this.#head;
    if (bio === null) return null;
    this.#head = bio.next;
    if (this.#head === null) this.#tail = null;
    bio.next = null;
    this.length--;
    return bio;
  }
}

/** Runs one bio and resolves with its status (0 or an errno). Slow paths only. */
export function runBio(
  pool: BioPool,
  sink: BioSink,
  io: {
    readonly op: Op;
    readonly offset: number;
    readonly length: number;
    readonly at?: number;
    readonly flags?: number;
  },
): Promise<number> {
  return new Promise((resolve) => {
    const owner: BioOwner = {
      bioEnded(bio) {
        const status = bio.status;
        pool.put(bio);
        resolve(status);
      },
    };
    sink.submit(pool.get(io.op, io.offset, io.length, io.at ?? 0, io.flags ?? 0, owner));
  });
}

/** The check every device makes before it looks at a bio: 0, or the errno to end it with. */
export function rangeError(bio: Bio, size: number, readOnly: boolean): number {
  if (bio.op === FLUSH) return 0;
  if (bio.offset < 0 || bio.length <= 0 || bio.offset + bio.length > size) {
    return changesData(bio.op) ? ERRNO.ENOSPC : ERRNO.EINVAL;
  }
  return readOnly && changesData(bio.op) ? ERRNO.EPERM : 0;
}
