/** One copy under way: a run of chunks whose old data is read, then stored.
 *
 *      reading --(read ended)--> storing --(stored)--> done
 *         \------(failed)------> done
 *
 *  With a persistent snapshot it stays in "reading" until that has its copy (persistent-copies.ts).
 *  While reading, writes to its chunks wait; from then on they pass, and the old data is in `at`.
 *  Pooled: a copy allocates nothing once the pool has grown. */

import type { Bio, BioOwner } from '../block/bio.ts';
import { READING } from './chunk-table.ts';
import type { ChunkIndex } from './chunk-table.ts';
import type { DiffArea } from './diff-area.ts';
import type { Stored } from './diff-storage.ts';
import type { KeptCopy } from './kept-copy.ts';

/** The most chunks of one run: 1 MiB. */
export const MAX_RUN = 256;

/** Who runs copies: the tracker of the origin. */
export interface CowRunOwner {
  /** `bio` is the ended read, to be given back. */
  runRead(run: CowRun, bio: Bio): void;
  runStored(run: CowRun, status: number): void;
}

export class CowRun implements BioOwner, Stored {
  area!: DiffArea;
  /** Its number in the area. */
  index = 0;
  first = 0 as ChunkIndex;
  count = 0;
  /** Where the old data is: in the copy memory, or in that of the storage. */
  at = 0;
  /** The storage's position of its first chunk when it is read straight into the storage; -1 otherwise. */
  position = -1;
  /** What it was read into is to be given back. */
  borrows = true;
  /** Table values of the chunks once they are stored. */
  readonly values = new Uint32Array(MAX_RUN);
  /** Writes that wait for the read. */
  readonly waiters: Bio[] = [];
  /** Batches the run is part of. */
  pendingBatches = 0;
  failed = 0;
  /** For persistent snapshots, the oldest first; and how many of these copies have ended. */
  readonly kept: KeptCopy[] = [];
  keptCount = 0;
  keptSinceMs = 0;
  keptIndex = 0;
  readonly #owner: CowRunOwner;

  constructor(owner: CowRunOwner) {
    this.#owner = owner;
  }

  /** The table value of its chunks while they are read, and kept. */
  get reading(): number {
    return READING + this.index;
  }

  bioEnded(bio: Bio): void {
    this.#owner.runRead(this, bio);
  }

  stored(status: number): void {
    if (status !== 0) this.failed = status;
    if (--this.pendingBatches === 0) this.#owner.runStored(this, this.failed);
  }
}
