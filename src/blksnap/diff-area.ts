/** The diff area of one origin in one snapshot: which chunks were saved since its take, and where.
 *
 *  An origin's areas form a list, oldest first. Only the newest that is alive receives copies; an
 *  older image reads its own area, then the newer ones, then the origin. A destroyed area stays in
 *  the list, as metadata and storage alone, while an older image still needs what it saved. */

import type { CbtMap } from './cbt-map.ts';
import type { MapCopy } from './map-copy.ts';
import { CHUNK, ChunkTable, FIRST_POSITION, GONE, LEAF, UNSAVED, chunkOf } from './chunk-table.ts';
import type { ChunkIndex } from './chunk-table.ts';
import type { CowRun } from './cow-run.ts';
import type { DiffStorage } from './diff-storage.ts';
import type { Journal } from './journal.ts';

/** The journal of a snapshot, and the number that the area's disk has in it. */
export interface AreaJournal {
  readonly journal: Journal;
  readonly disk: number;
}

export class DiffArea {
  readonly snapshotId: string;
  readonly storage: DiffStorage;
  /** The origin's at the take, bytes; and the last chunk of it. */
  readonly size: number;
  readonly lastChunk: ChunkIndex;
  readonly table: ChunkTable;
  /** The CBT map as of the take, with what was written to the image since. */
  readonly frozenMap: Uint8Array;
  /** Bytes of one of its blocks. */
  blockSize = 0;
  generationId = '';
  /** The number of the period that the take ended. */
  changeNumber = 0;
  /** Alive: there is a snapshot image for it. */
  alive = true;
  /** A reader of the image has been done with some of it. */
  released = false;
  /** 0, or why the image is lost (an errno). */
  brokenBy = 0;
  /** Runs by the number that the table holds; null where the number is free. */
  readonly runs: Array<CowRun | null> = [];
  readonly freeRuns: number[] = [];
  /** Where what is saved is recorded, for a snapshot that outlives the process; null for others. */
  readonly journal: AreaJournal | null;
  /** Copies and records for the journal that are on their way. */
  keeping = 0;
  /** The snapshot is about to be laid down for the next process: copies go on until its disk is detached. */
  leaving = false;
  /** What its newest copy asked the storage for. */
  askedBytes = 0;
  /** Counters. */
  savedChunks = 0;
  zeroChunks = 0;

  constructor(
    snapshotId: string,
    storage: DiffStorage,
    deviceSize: number,
    frozenMap: Uint8Array,
    journal: AreaJournal | null = null,
  ) {
    this.snapshotId = snapshotId;
    this.storage = storage;
    this.size = deviceSize;
    this.lastChunk = chunkOf(deviceSize - 1);
    this.table = new ChunkTable(deviceSize);
    this.frozenMap = frozenMap;
    this.journal = journal;
  }

  /** Whether the area takes copies. */
  get active(): boolean {
    return this.alive && this.brokenBy === 0;
  }

  /** Whether a run is still on its way to the storage. */
  get busy(): boolean {
    return this.runs.length !== this.freeRuns.length || this.keeping > 0;
  }

  /** Freezes the change map, of which `copy` was made for this area, and begins the next period. Runs between freeze and
   *  thaw; cannot fail. */
  freeze(cbt: CbtMap, copy: MapCopy): void {
    // A disk that got another size and its old one again has a new map.
    if (copy.isOf(cbt.map)) copy.end();
    else this.frozenMap.set(cbt.map);
    this.blockSize = cbt.blockSize;
    this.generationId = cbt.generationId;
    this.changeNumber = cbt.changeNumber;
    cbt.advance();
  }

  /** Gives the run a number for the table. */
  addRun(run: CowRun): number {
    const index = this.freeRuns.pop() ?? this.runs.length;
    this.runs[index] = run;
    return index;
  }

  removeRun(index: number): void {
    this.runs[index] = null;
    this.freeRuns.push(index);
  }

  /** Marks chunks as gone, but for those that somebody else needs (null: nobody does) or that are on their way, and
   *  gives their space back. Their number. */
  lose(first: ChunkIndex, end: number, needed: ((chunk: ChunkIndex) => boolean) | null): number {
    const rows = new Rows(this.storage);
    let lost = 0;
    for (let chunk = first; chunk < end;) {
      // All that was never stored is passed over in large steps, and takes no memory.
      const step = needed === null ? this.table.loseUnstored(chunk, end) : 0;
      if (step > 0) {
        lost += step;
        chunk = (chunk + step) as ChunkIndex;
        continue;
      }
      const value = this.table.get(chunk);
      if (value < GONE && (needed === null || !needed(chunk))) {
        if (value >= FIRST_POSITION) rows.add(value - FIRST_POSITION);
        this.table.set(chunk, GONE);
        lost++;
      }
      chunk = (chunk + 1) as ChunkIndex;
      if (chunk >= end || chunk % LEAF === 0) this.table.share((chunk - 1) as ChunkIndex);
    }
    rows.end();
    return lost;
  }

  /** Forgets every stored chunk for which `needed` is false and gives its space back. Runs on their way are
   *  left alone, and so are zeros, which take none. */
  discard(needed: (chunk: ChunkIndex) => boolean): void {
    const rows = new Rows(this.storage);
    for (const { chunk, value } of this.table.entries()) {
      if (value < FIRST_POSITION || value >= GONE || needed(chunk)) continue;
      this.table.set(chunk, UNSAVED);
      rows.add(value - FIRST_POSITION);
    }
    rows.end();
  }

  get savedBytes(): number {
    return this.savedChunks * CHUNK;
  }
}

/** Gives positions back to a storage, neighbours at once. */
class Rows {
  readonly #storage: DiffStorage;
  #from = 0;
  #count = 0;

  constructor(storage: DiffStorage) {
    this.#storage = storage;
  }

  add(position: number): void {
    if (this.#count === 0 || position !== this.#from + this.#count) {
      this.end();
      this.#from = position;
    }
    this.#count++;
  }

  end(): void {
    if (this.#count > 0) this.#storage.punch(this.#from, this.#count);
    this.#count = 0;
  }
}
