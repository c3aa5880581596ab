/** A copy of a run's chunks for one persistent snapshot, on its way to the storage and then into the journal.
 *
 *      storing --(stored)--> recording --(recorded)--> saved
 *         \------(failed)--------\-------(failed)----> not saved
 *
 *  Pooled. */

import { FIRST_POSITION, UNSAVED, ZERO } from './chunk-table.ts';
import type { ChunkIndex } from './chunk-table.ts';
import type { CowRun } from './cow-run.ts';
import { MAX_RUN } from './cow-run.ts';
import type { DiffArea } from './diff-area.ts';
import type { Stored } from './diff-storage.ts';
import type { Journal, Recorded } from './journal.ts';
import { ROW_STORED, ROW_ZERO } from './journal-format.ts';

/** Who makes these copies. */
export interface KeptCopyOwner {
  copyStored(copy: KeptCopy): void;
  copyRecorded(copy: KeptCopy, status: number): void;
}

export class KeptCopy implements Stored, Recorded {
  area!: DiffArea;
  /** Null once nobody waits for it. */
  run: CowRun | null = null;
  first = 0 as ChunkIndex;
  count = 0;
  /** Table values of the chunks once they are saved; UNSAVED for those that are none of the copy's. */
  readonly values = new Uint32Array(MAX_RUN);
  pendingBatches = 0;
  failed = 0;
  recording = false;
  readonly #owner: KeptCopyOwner;

  constructor(owner: KeptCopyOwner) {
    this.#owner = owner;
  }

  stored(status: number): void {
    if (status !== 0) this.failed = status;
    if (--this.pendingBatches === 0) this.#owner.copyStored(this);
  }

  get maxRows(): number {
    return this.count;
  }

  /** One row for each stretch of zeros, and for each of stored chunks: those lie in a row. */
  putRows(journal: Journal): void {
    const { values, count, first, area } = this;
    const { storage } = area;
    const { disk } = area.journal!;
    for (let i = 0; i < count;) {
      const value = values[i]!;
      let end = i + 1;
      if (value === UNSAVED) {
        i = end;
        continue;
      }
      const zero = value === ZERO;
      while (end < count && values[end] === (zero ? ZERO : value + end - i)) end++;
      const piece = zero ? 0 : storage.pieceIndexOf(value - FIRST_POSITION);
      const position = zero ? 0 : value - FIRST_POSITION - storage.pieces[piece]!.base;
      journal.putRow({
        type: zero ? ROW_ZERO : ROW_STORED,
        disk,
        chunk: first + i,
        count: end - i,
        position,
        piece,
      });
      i = end;
    }
  }

  recorded(status: number): void {
    this.#owner.copyRecorded(this, status);
  }
}
