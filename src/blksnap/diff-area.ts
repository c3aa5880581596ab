/** The diff area of one origin in one snapshot: which chunks were saved since its take, and where.
 *
 *  An origin's areas form a list, oldest first. Only the newest that is alive receives copies; an
 *  older image reads its own area, then the newer ones, then the origin. A destroyed area stays in
 *  the list, as metadata and storage alone, while an older image still needs what it saved. */

import type { CbtMap } from './cbt-map.ts';
import { CHUNK, ChunkTable, FIRST_POSITION, STORING, UNSAVED, chunkOf } from './chunk-table.ts';
import type { ChunkIndex } from './chunk-table.ts';
import type { CowRun } from './cow-run.ts';
import type { DiffStorage } from './diff-storage.ts';

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
  /** 0, or why the image is lost (an errno). */
  brokenBy = 0;
  /** Runs by the number that the table holds; null where the number is free. */
  readonly runs: Array<CowRun | null> = [];
  readonly freeRuns: number[] = [];
  /** Counters. */
  savedChunks = 0;
  zeroChunks = 0;

  constructor(snapshotId: string, storage: DiffStorage, deviceSize: number, frozenMap: Uint8Array) {
    this.snapshotId = snapshotId;
    this.storage = storage;
    this.size = deviceSize;
    this.lastChunk = chunkOf(deviceSize - 1);
    this.table = new ChunkTable(deviceSize);
    this.frozenMap = frozenMap;
  }

  /** Whether the area takes copies. */
  get active(): boolean {
    return this.alive && this.brokenBy === 0;
  }

  /** Whether a run is still on its way to the storage. */
  get busy(): boolean {
    return this.runs.length !== this.freeRuns.length;
  }

  /** Freezes the change map and begins the next period. Runs between freeze and thaw; cannot fail. */
  freeze(cbt: CbtMap): void {
    this.frozenMap.set(cbt.map);
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

  /** Forgets every stored chunk for which `needed` is false and gives its space back. Runs on their way are
   *  left alone, and so are zeros, which take none. */
  discard(needed: (chunk: ChunkIndex) => boolean): void {
    let from = 0;
    let count = 0;
    for (const { chunk, value } of this.table.entries()) {
      if (value < FIRST_POSITION || value >= STORING || needed(chunk)) continue;
      this.table.set(chunk, UNSAVED);
      const position = value - FIRST_POSITION;
      if (count > 0 && position === from + count) {
        count++;
        continue;
      }
      if (count > 0) this.storage.punch(from, count);
      from = position;
      count = 1;
    }
    if (count > 0) this.storage.punch(from, count);
  }

  get savedBytes(): number {
    return this.savedChunks * CHUNK;
  }
}
