/** Copy-on-write for one origin: a write passes only when the old data of every chunk it touches
 *  is safe for the snapshots that are held.
 *
 *  Order for a write while a snapshot is held:
 *    1. chunks that are saved already: pass (hot path: a table look-up a chunk, nothing else);
 *    2. else hold the bio, read the old data, mark the chunks "in memory";
 *    3. let the write pass;
 *    4. store the copy, mark it stored, give the memory back.
 *  A second write to a chunk whose read is under way waits for that read only.
 *
 *  Step 2 is widened to whole copy units, as far as there is memory: only for what it touches itself does a write wait
 *  for some. Chunks around it that are saved stay as they are, and beyond an area's end there are none.
 *
 *  Of large ranges, and of all that is discarded, holes are not read but marked as zeros at once. A chunk that is
 *  neither saved nor being read has seen no write since the take, whoever looks at it: those before had ended by then, and
 *  all others wait until their chunks are saved. So no write to it can be under way below.
 *
 *  While a snapshot is held that outlives the process, step 3 comes after step 4: see persistent-copies.ts.
 *
 *  Memory is bounded: without any, writes wait for stores to end, up to `timeoutMs`, then the
 *  snapshot breaks and the writes go on. **A broken snapshot never fails or delays its origin.**
 *
 *  Between the check of a chunk's state and what follows from it there is no await and no completion. */

import { ARENA_BLOCK, NO_MEMORY } from '../io/arena.ts';
import { READ, WRITE } from '../block/bio.ts';
import type { Bio } from '../block/bio.ts';
import { assert } from '../util/assert.ts';
import { ERRNO } from '../util/errors.ts';
import { AreaList } from './area-list.ts';
import {
  CHUNK,
  FIRST_POSITION,
  READING,
  STORING,
  UNSAVED,
  ZERO,
  chunkOf,
  isSaved,
  isZeroChunk,
  runOf,
} from './chunk-table.ts';
import type { ChunkIndex } from './chunk-table.ts';
import { NO_COPIES } from './copy-counters.ts';
import type { CopyCounters } from './copy-counters.ts';
import type { CopyOnWriteOptions } from './copy-on-write-options.ts';
import { CowRun, MAX_RUN } from './cow-run.ts';
import type { CowRunOwner } from './cow-run.ts';
import type { DiffArea } from './diff-area.ts';
import type { DiffStorage } from './diff-storage.ts';
import { PersistentCopies } from './persistent-copies.ts';
import { StarvedWrites } from './starved-writes.ts';

/** Writes of as many chunks look for holes first. */
const HOLES_FROM = 16;

export class CopyOnWrite implements CowRunOwner {
  readonly #o: CopyOnWriteOptions;
  readonly #words: Int32Array;
  /** Chunks of a copy unit. */
  readonly #unit: number;
  readonly areas = new AreaList();
  readonly #spareRuns: CowRun[] = [];
  readonly #persistent: PersistentCopies;
  readonly #starved: StarvedWrites;
  readonly counters: CopyCounters = { ...NO_COPIES };

  constructor(options: CopyOnWriteOptions) {
    this.#o = options;
    this.#words = new Int32Array(options.memory.bytes.buffer);
    const { reactor, memory, timeoutMs, copyUnitBytes } = options;
    this.#unit = copyUnitBytes / CHUNK;
    this.#starved = new StarvedWrites({
      reactor,
      memory,
      timeoutMs,
      goOn: (bio) => this.#unwait(bio),
      timedOut: () => {
        if (this.areas.live !== null) this.break(this.areas.live, ERRNO.ETIMEDOUT, false);
      },
    });
    this.#persistent = new PersistentCopies({
      reactor,
      timeoutMs,
      memory,
      kept: (run) => this.#runKept(run),
      unbarred: (bio) => this.#unwait(bio),
      breakArea: (area, errno) => this.break(area, errno, false),
      count: (zero) => this.#count(zero),
    });
  }

  /** Whether a write must ask `passable` at all. */
  get active(): boolean {
    return this.areas.live !== null;
  }

  // --- the areas ------------------------------------------------------------------------------

  /** The area becomes the newest. Behind the gate. */
  add(area: DiffArea): void {
    this.areas.add(area);
    this.#persistent.update(this.areas.all);
  }

  /** The snapshot of `area` is gone. Returns the areas that nobody needs any more, for their storage to be released. */
  remove(area: DiffArea): DiffArea[] {
    const useless = this.areas.remove(area);
    this.#persistent.update(this.areas.all);
    this.#starved.wakeAll();
    return useless;
  }

  /** Gives the image of `area` up; its origin goes on. `lost`: chunks that older images read
   *  through this area are lost with it. */
  break(area: DiffArea, errno: number, lost: boolean): void {
    if (!area.active) return;
    const victims = lost ? this.areas.activeUpTo(area) : [area];
    for (const victim of victims) victim.brokenBy = errno;
    this.areas.findLive();
    this.#persistent.update(this.areas.all);
    this.counters.brokenImages += victims.length;
    // Before the storage is given back: who hears of it wants to know how full it was.
    for (const victim of victims) this.#o.onBroken(victim, errno);
    if (this.areas.activeUpTo(area).length === 0) for (const victim of victims) victim.discard(() => false);
    this.#starved.wakeAll();
  }

  /** Nobody will read this range of the area's image again: what was saved of it is freed, and writes there are no
   *  longer copied. Slow path. */
  release(area: DiffArea, offset: number, length: number): void {
    this.counters.releasedChunks += this.areas.release(area, offset, length);
  }

  /** The origin has another size. Growth needs nothing: what lies beyond an area's size is not its business.
   *  After shrinking, images that still read what was cut off are lost. Behind the gate. */
  resized(size: number): void {
    for (const area of this.areas.all) {
      if (area.active && area.size > size && this.areas.readsOrigin(area, size)) this.break(area, ERRNO.ESTALE, false);
    }
  }

  // --- the way of a write ---------------------------------------------------------------------

  /** Whether the write may pass now: the hot path of every write while a snapshot is held. */
  passable(bio: Bio, first: ChunkIndex = chunkOf(bio.offset)): boolean {
    const { live } = this.areas;
    if (live === null) return true;
    if (this.#persistent.barred) return false;
    const last = Math.min(chunkOf(bio.offset + bio.length - 1), live.lastChunk) as ChunkIndex;
    for (let chunk = first; chunk <= last;) {
      if (isSaved(live.table.get(chunk))) chunk = live.table.after(chunk);
      else if (!this.areas.savedLater(chunk)) return false;
      else chunk++;
    }
    return true;
  }

  /** Takes a write that may not pass yet; lets it go when its chunks are safe. */
  hold(bio: Bio): void {
    this.counters.heldWrites++;
    bio.waiting = 0;
    this.#protect(bio, this.#unitStart(bio));
  }

  /** The first chunk of the copy unit that the write begins in. */
  #unitStart(bio: Bio): ChunkIndex {
    const chunk = chunkOf(bio.offset);
    return (chunk - (chunk % this.#unit)) as ChunkIndex;
  }

  /** Starts or joins the reads that the write needs from `first` on, and holds it until they ended. */
  #protect(bio: Bio, first: ChunkIndex): void {
    const { live } = this.areas;
    assert(live !== null, 'a snapshot is held');
    bio.waiting++;
    // A read that ends at once may break the live area: then it is the old era that counts.
    bio.era = this.areas.era;
    bio.reached = first;
    const starved = !this.#persistent.barred && this.#protectFrom(live, bio, first);
    // Also for what was just found to be a hole; one that waits for memory looks again afterwards.
    if (this.#persistent.barred && !starved) {
      bio.waiting++;
      this.#persistent.bar(bio);
    }
    this.#unwait(bio);
  }

  /** Whether it waits for memory: as long as `bio.reached` is among the chunks that it touches itself. */
  #protectFrom(live: DiffArea, bio: Bio, first: ChunkIndex): boolean {
    const ownFirst = chunkOf(bio.offset);
    const ownLast = chunkOf(bio.offset + bio.length - 1);
    const last = Math.min(ownLast - (ownLast % this.#unit) + this.#unit - 1, live.lastChunk) as ChunkIndex;
    let chunk = first;
    const holes = bio.op !== WRITE || last - chunk >= HOLES_FROM ? this.#o.holes() : null;
    /** Where the data that is known to begin before it ends. */
    let dataEnd = holes === null ? Infinity : chunk;
    let starved = false;
    while (chunk <= last) {
      const value = live.table.get(chunk);
      if (isSaved(value)) {
        chunk = live.table.after(chunk);
      } else if (this.areas.savedLater(chunk)) {
        chunk++;
      } else if (value >= READING) {
        const run = live.runs[runOf(value)]!;
        this.#wait(bio, run);
        chunk = (run.first + run.count) as ChunkIndex;
      } else if (holes !== null && chunk >= dataEnd) {
        const endByte = Math.min((last + 1) * CHUNK, live.size);
        const dataByte = holes.dataFrom(chunk * CHUNK, endByte);
        const data = dataByte < endByte ? chunkOf(dataByte) : ((last + 1) as ChunkIndex);
        this.#markHole(live, chunk, data);
        if (data <= last) dataEnd = Math.ceil(holes.dataUntil(dataByte, endByte) / CHUNK);
        chunk = data;
      } else {
        const count = this.#startRun(live, chunk, Math.min(last, dataEnd - 1) as ChunkIndex, bio);
        if (count === 0 && chunk < ownFirst) {
          chunk = ownFirst;
          continue;
        }
        if (count === 0 && chunk > ownLast) break;
        if (count === 0) {
          this.counters.memoryWaits++;
          bio.waiting++;
          this.#starved.push(bio);
          starved = true;
          break;
        }
        chunk = (chunk + count) as ChunkIndex;
      }
    }
    bio.reached = chunk;
    return starved;
  }

  /** Marks chunks that lie in a hole as zeros, as far as nothing is saved or being read there. */
  #markHole(live: DiffArea, from: ChunkIndex, end: ChunkIndex): void {
    let chunk = from;
    while (chunk < end) {
      let count = this.areas.liveIsNewest ? live.table.zeroEmpty(chunk, end) : 0;
      if (count === 0 && live.table.get(chunk) === UNSAVED && !this.areas.savedLater(chunk)) {
        live.table.set(chunk, ZERO);
        count = 1;
      }
      live.zeroChunks += count;
      this.counters.holeChunks += count;
      chunk = (chunk + Math.max(1, count)) as ChunkIndex;
    }
    if (this.#persistent.active && from < end) this.#persistent.keepHole(from, end);
  }

  #wait(bio: Bio, run: CowRun): void {
    bio.waiting++;
    run.waiters.push(bio);
  }

  /** One thing less to wait for. After the last the write goes on where memory ran out; from the start of its copy unit
   *  when the snapshot has broken, and another taken over, meanwhile. */
  #unwait(bio: Bio): void {
    if (--bio.waiting > 0) return;
    const first = bio.era === this.areas.era ? (bio.reached as ChunkIndex) : this.#unitStart(bio);
    if (!this.passable(bio, first)) {
      this.#protect(bio, first);
      return;
    }
    this.#o.onPass();
    this.#o.above.below.submit(bio);
  }

  // --- copies ---------------------------------------------------------------------------------

  /** Starts to read the unsaved chunks from `first` on, in one piece, for `bio` to wait for. Their
   *  number, or 0 without memory. The read may end at once. */
  #startRun(area: DiffArea, first: ChunkIndex, last: ChunkIndex, bio: Bio): number {
    let count = 1;
    while (count < MAX_RUN && first + count <= last) {
      const next = (first + count) as ChunkIndex;
      if (area.table.get(next) !== UNSAVED || this.areas.savedLater(next)) break;
      count++;
    }
    const run = this.#spareRuns.pop() ?? new CowRun(this);
    count = this.#borrow(run, area.storage, count);
    if (count === 0) {
      this.#spareRuns.push(run);
      return 0;
    }
    run.area = area;
    run.index = area.addRun(run);
    run.first = first;
    run.failed = 0;
    this.#wait(bio, run);
    this.#setAll(run, READING + run.index);
    const offset = first * CHUNK;
    const length = Math.min(count * CHUNK, area.size - offset);
    this.counters.reads++;
    this.counters.readBytes += length;
    const { memory, pool } = this.#o;
    if (length < count * CHUNK) memory.bytes.fill(0, run.at + length, run.at + count * CHUNK);
    this.#o.above.below.submit(pool.get(READ, offset, length, run.at, 0, run));
    return count;
  }

  /** Memory for the run's data: the storage's own, to stay there, or copy memory. For how many chunks in a row, at most
   *  `count`; 0 without any. */
  #borrow(run: CowRun, storage: DiffStorage, count: number): number {
    const room = storage.room(count);
    run.position = room > 0 ? storage.take(room) : -1;
    run.borrows = true;
    run.count = room > 0 ? room : count;
    run.at = room > 0 ? storage.placeOf(run.position) : this.#o.memory.allocate(count * CHUNK);
    while (run.at === NO_MEMORY && run.count > 1) {
      run.count = Math.ceil(run.count / 2);
      run.at = this.#o.memory.allocate(run.count * CHUNK);
    }
    return run.at === NO_MEMORY ? 0 : run.count;
  }

  #setAll(run: CowRun, value: number): void {
    for (let i = 0; i < run.count; i++) run.area.table.set((run.first + i) as ChunkIndex, value);
  }

  /** The old data is in memory (or not to be had): the writes may pass. */
  runRead(run: CowRun, bio: Bio): void {
    const { area } = run;
    const status = bio.status;
    this.#o.pool.put(bio);
    if (status !== 0 || !area.active) {
      this.#setAll(run, UNSAVED);
      if (status !== 0) this.break(area, status, false);
      this.#release(run);
      return;
    }
    if (this.#persistent.active) this.#persistent.keep(run);
    else this.#copy(run);
  }

  /** All persistent snapshots have their copies, or are broken. */
  #runKept(run: CowRun): void {
    const { area } = run;
    if (area.active && area.journal === null) {
      this.#copy(run);
      return;
    }
    for (let i = 0; i < run.count; i++) {
      const chunk = (run.first + i) as ChunkIndex;
      if (area.table.get(chunk) === run.reading) area.table.set(chunk, UNSAVED);
    }
    this.#release(run);
  }

  #copy(run: CowRun): void {
    const { area } = run;
    const stored = this.#place(run);
    if (stored < 0) {
      this.#setAll(run, UNSAVED);
      this.break(area, ERRNO.ENOSPC, false);
      this.#release(run);
      return;
    }
    if (stored === 0) {
      this.#publish(run);
      this.#release(run);
      return;
    }
    this.#setAll(run, STORING + run.index);
    this.#store(run);
    this.#letGo(run);
  }

  /** Finds a position for every chunk that is not all zero. The number of those that must be stored there, or -1 without
   *  space. */
  #place(run: CowRun): number {
    let stored = 0;
    for (let i = 0; i < run.count; i++) {
      const zero = isZeroChunk(this.#words, run.at + i * CHUNK);
      run.values[i] = zero ? ZERO : FIRST_POSITION;
      if (!zero) stored++;
    }
    if (stored === 0) return 0;
    const { storage } = run.area;
    run.area.askedBytes = stored * CHUNK;
    if (run.position >= 0 && storage.keep(run.position, stored)) {
      this.#keepHere(run);
      return 0;
    }
    let position = storage.allocate(stored);
    if (position < 0) return -1;
    for (let i = 0; i < run.count; i++) {
      if (run.values[i] !== ZERO) run.values[i] = FIRST_POSITION + position++;
    }
    return stored;
  }

  /** What was read straight into the storage stays where it is, but for zeros. */
  #keepHere(run: CowRun): void {
    run.borrows = false;
    for (let i = 0; i < run.count; i++) {
      if (run.values[i] === ZERO) run.area.storage.drop(run.position + i, 1);
      else run.values[i] = FIRST_POSITION + run.position + i;
    }
  }

  /** Hands the run's chunks to the storage, as one segment for each stretch between zero chunks. */
  #store(run: CowRun): void {
    const { storage } = run.area;
    // Held until all segments are handed over, should one of their batches end at once.
    run.pendingBatches = 1;
    let i = 0;
    while (i < run.count) {
      if (run.values[i] === ZERO) {
        i++;
        continue;
      }
      let end = i + 1;
      while (end < run.count && run.values[end] !== ZERO) end++;
      run.pendingBatches++;
      storage.append(run.values[i]! - FIRST_POSITION, run.at + i * CHUNK, (end - i) * CHUNK, run);
      i = end;
    }
    run.pendingBatches--;
  }

  runStored(run: CowRun, status: number): void {
    // The writes have passed: what was not stored is lost to every image that would read it.
    if (status !== 0) {
      this.#setAll(run, UNSAVED);
      this.storageLost(run.area, status);
    } else {
      this.#publish(run);
    }
    this.#release(run);
  }

  /** The area lost what was stored. A destroyed one lost it for the older images that read it. */
  storageLost(area: DiffArea, errno: number): void {
    if (area.active) {
      this.break(area, errno, true);
      return;
    }
    const older = this.areas.activeUpTo(area).at(-1);
    if (older !== undefined) this.break(older, errno, true);
  }

  #publish(run: CowRun): void {
    const { area } = run;
    for (let i = 0; i < run.count; i++) {
      const value = run.values[i]!;
      area.table.set((run.first + i) as ChunkIndex, value);
      if (value === ZERO) area.zeroChunks++;
      else area.savedChunks++;
      this.#count(value === ZERO);
    }
  }

  #count(zero: boolean): void {
    if (zero) {
      this.counters.zeroChunks++;
      return;
    }
    this.counters.copiedChunks++;
    this.counters.storedBytes += CHUNK;
  }

  #letGo(run: CowRun): void {
    const { waiters } = run;
    for (let i = 0; i < waiters.length; i++) this.#unwait(waiters[i]!);
    waiters.length = 0;
  }

  /** The run is over: its number and memory are free, its waiters go on. */
  #release(run: CowRun): void {
    run.area.removeRun(run.index);
    this.#letGo(run);
    this.#spareRuns.push(run);
    if (run.position < 0) this.#o.memory.release(run.at);
    else if (run.borrows) run.area.storage.drop(run.position, run.count);
  }
}

assert(CHUNK === ARENA_BLOCK, 'a chunk is one arena block');
