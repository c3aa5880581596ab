/** The record that chunks which lie in a hole are zeros, for each persistent snapshot of an origin in turn, the
 *  oldest first. Pooled. */

import type { ChunkIndex } from './chunk-table.ts';
import type { DiffArea } from './diff-area.ts';
import type { Journal, Recorded } from './journal.ts';
import { ROW_ZERO } from './journal-format.ts';

/** Who waits for it. */
export interface KeptHoleOwner {
  holeRecorded(hole: KeptHole, status: number): void;
}

export class KeptHole implements Recorded {
  readonly maxRows = 1;
  /** Those that are still to be told, and the one that is being told. */
  readonly areas: DiffArea[] = [];
  area!: DiffArea;
  first = 0 as ChunkIndex;
  count = 0;
  sinceMs = 0;
  /** Nobody waits for it any more. */
  late = false;
  readonly #owner: KeptHoleOwner;

  constructor(owner: KeptHoleOwner) {
    this.#owner = owner;
  }

  putRows(journal: Journal): void {
    const { first, area } = this;
    const count = Math.min(this.count, area.lastChunk + 1 - first);
    journal.putRow({ type: ROW_ZERO, disk: area.journal!.disk, chunk: first, count, position: 0, piece: 0 });
  }

  recorded(status: number): void {
    this.#owner.holeRecorded(this, status);
  }
}
