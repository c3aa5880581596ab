/** Copies for the snapshots of an origin that outlive the process: no write passes before its old data is stored and
 *  recorded for each of them.
 *
 *  Order for a write that touches a chunk first: read -> store -> record in the journal -> count -> let the write pass.
 *
 *  A persistent snapshot keeps a copy of its own of everything, also where a newer snapshot has one: none of them
 *  needs another after a restart. They are recorded one after another, the oldest first, so that what a
 *  newer one has, every older one has, wherever the process ends. Table entries follow the records.
 *
 *  A hole takes one record, however large it is. Writes to the origin wait until it is written (`barred`): its chunks
 *  are marked at once, and may not count before. What takes longer than `timeoutMs` breaks the snapshot, not the write. */

import type { Arena } from '../io/arena.ts';
import type { Reactor } from '../io/reactor.ts';
import { BioQueue } from '../block/bio.ts';
import type { Bio } from '../block/bio.ts';
import { ERRNO } from '../util/errors.ts';
import { CHUNK, FIRST_POSITION, UNSAVED, ZERO, isSaved, isZeroChunk } from './chunk-table.ts';
import type { ChunkIndex } from './chunk-table.ts';
import type { CowRun } from './cow-run.ts';
import type { DiffArea } from './diff-area.ts';
import { KeptCopy } from './kept-copy.ts';
import type { KeptCopyOwner } from './kept-copy.ts';
import { KeptHole } from './kept-hole.ts';
import type { KeptHoleOwner } from './kept-hole.ts';

export interface PersistentCopiesOptions {
  readonly reactor: Reactor;
  readonly timeoutMs: number;
  /** That the runs are in. */
  readonly memory: Arena;
  /** All persistent snapshots have the run, or are broken. May be called at once. */
  readonly kept: (run: CowRun) => void;
  /** A barred write may go on. */
  readonly unbarred: (bio: Bio) => void;
  readonly breakArea: (area: DiffArea, errno: number) => void;
  /** Chunks were saved. */
  readonly count: (zero: boolean) => void;
}

export class PersistentCopies implements KeptCopyOwner, KeptHoleOwner {
  readonly #o: PersistentCopiesOptions;
  readonly #words: Int32Array;
  /** Oldest first. */
  #areas: readonly DiffArea[] = [];
  /** Those that somebody waits for. */
  readonly #runs: CowRun[] = [];
  readonly #holes: KeptHole[] = [];
  readonly #barredBios = new BioQueue();
  readonly #spareCopies: KeptCopy[] = [];
  readonly #spareHoles: KeptHole[] = [];
  /** 0: none. */
  #timer = 0;
  readonly #onWatch = { complete: (): void => this.#watch() };

  constructor(options: PersistentCopiesOptions) {
    this.#o = options;
    this.#words = new Int32Array(options.memory.bytes.buffer);
  }

  /** The areas of the origin are others now, or in another state. */
  update(areas: readonly DiffArea[]): void {
    this.#areas = areas.filter((area) => area.active && area.journal !== null);
  }

  /** Whether a copy is to be kept at all. */
  get active(): boolean {
    return this.#areas.length > 0;
  }

  // --- runs -----------------------------------------------------------------------------------

  /** Stores and records a run whose old data is in memory; ends by `kept`. */
  keep(run: CowRun): void {
    run.kept.length = 0;
    run.keptCount = 0;
    run.keptSinceMs = this.#o.reactor.now();
    run.keptIndex = this.#runs.push(run) - 1;
    for (const area of this.#areas) {
      const copy = this.#begin(run, area);
      if (copy !== null) run.kept.push(copy);
    }
    this.#startWatch();
    this.#advance(run);
  }

  /** Places and stores what the area lacks of the run. Null when it has all of it, or is broken. */
  #begin(run: CowRun, area: DiffArea): KeptCopy | null {
    const copy = this.#spareCopies.pop() ?? new KeptCopy(this);
    let stored = 0;
    let wanted = 0;
    for (let i = 0; i < run.count; i++) {
      const chunk = (run.first + i) as ChunkIndex;
      const wants = chunk <= area.lastChunk && (area === run.area || area.table.get(chunk) === UNSAVED);
      const zero = wants && isZeroChunk(this.#words, run.at + i * CHUNK);
      copy.values[i] = !wants ? UNSAVED : zero ? ZERO : FIRST_POSITION;
      if (wants) wanted++;
      if (wants && !zero) stored++;
    }
    area.askedBytes = stored * CHUNK;
    let position = stored === 0 ? 0 : area.storage.allocate(stored);
    if (wanted === 0 || position < 0) {
      this.#spareCopies.push(copy);
      if (position < 0) this.#o.breakArea(area, ERRNO.ENOSPC);
      return null;
    }
    for (let i = 0; i < run.count; i++) {
      if (copy.values[i] === FIRST_POSITION) copy.values[i] = FIRST_POSITION + position++;
    }
    area.keeping++;
    copy.area = area;
    copy.run = run;
    copy.first = run.first;
    copy.count = run.count;
    copy.failed = 0;
    copy.recording = false;
    this.#store(copy, run.at);
    return copy;
  }

  #store(copy: KeptCopy, at: number): void {
    const { storage } = copy.area;
    const { values, count } = copy;
    copy.pendingBatches = 0;
    for (let i = 0; i < count;) {
      const value = values[i]!;
      let end = i + 1;
      if (value >= FIRST_POSITION) {
        while (end < count && values[end] === value + end - i) end++;
        copy.pendingBatches++;
        storage.append(value - FIRST_POSITION, at + i * CHUNK, (end - i) * CHUNK, copy);
      }
      i = end;
    }
  }

  copyStored(copy: KeptCopy): void {
    if (copy.run === null) this.#free(copy);
    else this.#advance(copy.run);
  }

  copyRecorded(copy: KeptCopy, status: number): void {
    copy.recording = false;
    if (status === 0) this.#publish(copy);
    else if (copy.area.active) this.#o.breakArea(copy.area, status);
    const { run } = copy;
    this.#free(copy);
    if (run === null) return;
    run.keptCount++;
    this.#advance(run);
  }

  /** Goes on with the first of the run's copies that is not saved yet, as soon as it is stored. */
  #advance(run: CowRun): void {
    while (run.keptCount < run.kept.length) {
      const copy = run.kept[run.keptCount]!;
      if (copy.pendingBatches > 0 || copy.recording) return;
      if (copy.failed === 0 && copy.area.active) {
        copy.recording = true;
        copy.area.journal!.journal.record(copy);
        return;
      }
      if (copy.area.active) this.#o.breakArea(copy.area, copy.failed);
      this.#free(copy);
      run.keptCount++;
    }
    this.#leave(run);
    this.#o.kept(run);
  }

  #publish({ area, values, first, count, run }: KeptCopy): void {
    for (let i = 0; i < count; i++) {
      const value = values[i]!;
      const chunk = (first + i) as ChunkIndex;
      // Another run may have begun there since the newest snapshot went: what it reads has not passed either.
      const there = area.table.get(chunk);
      if (value === UNSAVED || (there !== UNSAVED && (run === null || there !== run.reading || area !== run.area)))
        continue;
      area.table.set(chunk, value);
      if (value === ZERO) area.zeroChunks++;
      else area.savedChunks++;
      this.#o.count(value === ZERO);
    }
  }

  #free(copy: KeptCopy): void {
    copy.area.keeping--;
    copy.run = null;
    this.#spareCopies.push(copy);
  }

  #leave(run: CowRun): void {
    const last = this.#runs.pop()!;
    if (last !== run) {
      this.#runs[run.keptIndex] = last;
      last.keptIndex = run.keptIndex;
    }
    this.#stopWatch();
  }

  // --- holes ----------------------------------------------------------------------------------

  /** Whether writes must wait for the record of a hole. */
  get barred(): boolean {
    return this.#holes.length > 0;
  }

  /** Holds a write until nothing bars it. */
  bar(bio: Bio): void {
    this.#barredBios.push(bio);
  }

  /** Chunks of the newest area that lie in a hole count as zeros: so they do for all, once that is recorded. */
  keepHole(first: ChunkIndex, end: number): void {
    const hole = this.#spareHoles.pop() ?? new KeptHole(this);
    hole.first = first;
    hole.count = end - first;
    hole.late = false;
    hole.sinceMs = this.#o.reactor.now();
    for (const area of this.#areas) {
      if (first > area.lastChunk) continue;
      markZeros(area, first, Math.min(end, area.lastChunk + 1));
      hole.areas.push(area);
      area.keeping++;
    }
    this.#holes.push(hole);
    this.#startWatch();
    this.#advanceHole(hole);
  }

  #advanceHole(hole: KeptHole): void {
    for (let area = hole.areas.shift(); area !== undefined; area = hole.areas.shift()) {
      hole.area = area;
      if (area.active) {
        area.journal!.journal.record(hole);
        return;
      }
      area.keeping--;
    }
    this.#spareHoles.push(hole);
    if (!hole.late) this.#unbar(hole);
  }

  holeRecorded(hole: KeptHole, status: number): void {
    hole.area.keeping--;
    if (status !== 0 && hole.area.active) this.#o.breakArea(hole.area, status);
    this.#advanceHole(hole);
  }

  #unbar(hole: KeptHole): void {
    this.#holes.splice(this.#holes.indexOf(hole), 1);
    this.#stopWatch();
    // One that goes on may bar those after it again, or set them free itself.
    while (!this.barred) {
      const bio = this.#barredBios.shift();
      if (bio === null) return;
      this.#o.unbarred(bio);
    }
  }

  // --- time -----------------------------------------------------------------------------------

  #startWatch(): void {
    if (this.#timer === 0) this.#timer = this.#o.reactor.timer(Math.ceil(this.#o.timeoutMs / 4), this.#onWatch);
  }

  #stopWatch(): void {
    if (this.#timer === 0 || this.#runs.length + this.#holes.length > 0) return;
    this.#o.reactor.cancelTimer(this.#timer);
    this.#timer = 0;
  }

  #watch(): void {
    this.#timer = 0;
    const late = this.#o.reactor.now() - this.#o.timeoutMs;
    for (const hole of this.#holes.filter(({ sinceMs }) => sinceMs < late)) this.#giveUpHole(hole);
    for (const run of this.#runs.filter(({ keptSinceMs }) => keptSinceMs < late)) this.#giveUp(run, late);
    if (this.#runs.length + this.#holes.length > 0) this.#startWatch();
  }

  /** The writes go on without the copies, and the snapshots are broken. */
  #giveUp(run: CowRun, late: number): void {
    if (this.#runs[run.keptIndex] !== run || run.keptSinceMs >= late) return;
    for (const copy of run.kept.slice(run.keptCount)) {
      if (copy.area.active) this.#o.breakArea(copy.area, ERRNO.ETIMEDOUT);
      copy.run = null;
      if (copy.pendingBatches === 0 && !copy.recording) this.#free(copy);
    }
    this.#leave(run);
    this.#o.kept(run);
  }

  #giveUpHole(hole: KeptHole): void {
    for (const area of [hole.area, ...hole.areas]) if (area.active) this.#o.breakArea(area, ERRNO.ETIMEDOUT);
    hole.late = true;
    this.#unbar(hole);
  }
}

/** Marks what is not saved in the range as zeros. */
function markZeros(area: DiffArea, first: ChunkIndex, end: number): void {
  const { table } = area;
  for (let chunk = first; chunk < end;) {
    const count = table.zeroEmpty(chunk, end);
    area.zeroChunks += count;
    if (count === 0 && table.get(chunk) === UNSAVED) {
      table.set(chunk, ZERO);
      area.zeroChunks++;
    }
    chunk = (count > 0 ? chunk + count : isSaved(table.get(chunk)) ? table.after(chunk) : chunk + 1) as ChunkIndex;
  }
}
