/** The reads of a snapshot image: finds for each part where it lies, and starts what gets it from there.
 *
 *  Takes no locks and never delays the origin: a chunk that no area has saved is read from the origin; when that read
 *  ends, the chunk's state is looked at again. Still unsaved means that no write can have passed meanwhile, so the
 *  data is right; otherwise the saved copy is read.
 *
 *  What lies in a row in the storage is one read, wherever its parts go. Hot path. */

import { NO_MEMORY } from '../io/arena.ts';
import type { Arena } from '../io/arena.ts';
import type { Completion } from '../io/reactor.ts';
import type { Segments } from '../io/segments.ts';
import { READ } from '../block/bio.ts';
import type { Bio, BioOwner, BioPool } from '../block/bio.ts';
import { ERRNO } from '../util/errors.ts';
import { CHUNK, FIRST_POSITION, GONE, STORING, UNSAVED, ZERO, chunkOf, runOf } from './chunk-table.ts';
import type { ChunkIndex } from './chunk-table.ts';
import type { DiffArea } from './diff-area.ts';
import type { DiffStorage } from './diff-storage.ts';
import type { ImageOverlay } from './image-overlay.ts';
import type { Tracker } from './tracker.ts';

/** As many parts of one read lie apart in memory at most. */
const MAX_SEGMENTS = 128;

/** A contiguous part of a read that comes from the origin. Pooled. */
class OriginRead implements BioOwner {
  parent!: Bio;
  offset = 0;
  length = 0;
  at = 0;
  readonly #reads: ImageReads;

  constructor(reads: ImageReads) {
    this.#reads = reads;
  }

  bioEnded(bio: Bio): void {
    this.#reads.originRead(this, bio);
  }
}

/** Parts of a read that lie in a row in the storage. Pooled. */
class SavedRead implements Completion, Segments {
  parent!: Bio;
  storage!: DiffStorage;
  position = 0;
  /** Bytes before it in its first chunk. */
  skip = 0;
  /** The parts' range in the image, with all between them. */
  offset = 0;
  end = 0;
  /** Pairs of (arena place, bytes). */
  readonly segments = new Float64Array(MAX_SEGMENTS * 2);
  count = 0;
  bytes = 0;
  readonly #reads: ImageReads;

  constructor(reads: ImageReads) {
    this.#reads = reads;
  }

  /** Whether what begins there is next in the row, and there is room for it. */
  takes(storage: DiffStorage, position: number, skip: number): boolean {
    return (
      storage === this.storage &&
      (position - this.position) * CHUNK + skip === this.skip + this.bytes &&
      this.count < MAX_SEGMENTS
    );
  }

  add(at: number, bytes: number, end: number): void {
    const last = (this.count - 1) * 2;
    if (last >= 0 && at === this.segments[last]! + this.segments[last + 1]!) {
      this.segments[last + 1]! += bytes;
    } else {
      this.segments[this.count * 2] = at;
      this.segments[this.count * 2 + 1] = bytes;
      this.count++;
    }
    this.bytes += bytes;
    this.end = end;
  }

  start(): void {
    this.storage.read(this.position, this.skip, this, this);
  }

  complete(result: number): void {
    this.#reads.savedRead(this, result);
  }
}

export interface ImageReadsOptions {
  readonly tracker: Tracker;
  readonly area: DiffArea;
  readonly overlay: ImageOverlay;
  readonly arena: Arena;
  readonly pool: BioPool;
  /** One thing less that the read waits for. `status` is 0 or an errno. */
  readonly ended: (parent: Bio, status: number) => void;
}

export class ImageReads {
  readonly #o: ImageReadsOptions;
  readonly #spareOrigin: OriginRead[] = [];
  readonly #spareSaved: SavedRead[] = [];

  constructor(options: ImageReadsOptions) {
    this.#o = options;
  }

  /** Starts one operation for each part of the range that lies in one place; each counts in `parent.waiting`. */
  start(parent: Bio, offset: number, length: number, at: number): void {
    const { area, overlay, tracker } = this.#o;
    const { areas } = tracker.cow;
    const index = areas.indexOf(area);
    const end = offset + length;
    let row: SavedRead | null = null;
    let from = offset;
    while (from < end) {
      const chunk = chunkOf(from);
      const overlaid = overlay.table.get(chunk);
      const holder = overlaid !== UNSAVED ? area : areas.lookUp(index, chunk);
      const place = at + from - offset;
      if (holder === null) {
        from = this.#readOrigin(parent, index, from, end, place);
        continue;
      }
      const value = overlaid !== UNSAVED ? overlaid : holder.table.get(chunk);
      let to = Math.min((chunk + 1) * CHUNK, end);
      if (value === GONE) parent.status = ERRNO.EIO;
      else if (!this.#inMemory(holder, value, from, to, place)) {
        const { storage } = holder;
        const skip = from - chunk * CHUNK;
        if (row === null || !row.takes(storage, value - FIRST_POSITION, skip)) {
          row?.start();
          row = this.#savedRow(parent, storage, value - FIRST_POSITION, skip, from);
        }
        // No other area comes before our own: what follows in it needs no look-up.
        for (let i = 1; overlaid === UNSAVED && holder === area && to < end; i++) {
          const next = chunkOf(to);
          if (area.table.get(next) !== value + i || overlay.table.get(next) !== UNSAVED) break;
          to = Math.min(to + CHUNK, end);
        }
        row.add(place, to - from, to);
      }
      from = to;
    }
    row?.start();
  }

  /** Reads as much as nobody has saved from the origin. Returns where it stopped. */
  #readOrigin(parent: Bio, index: number, from: number, end: number, at: number): number {
    const { overlay, tracker, pool } = this.#o;
    const { areas } = tracker.cow;
    let to = (chunkOf(from) + 1) * CHUNK;
    while (to < end && overlay.table.get(chunkOf(to)) === UNSAVED && areas.lookUp(index, chunkOf(to)) === null)
      to += CHUNK;
    to = Math.min(to, end);
    const read = this.#spareOrigin.pop() ?? new OriginRead(this);
    read.parent = parent;
    read.offset = from;
    read.length = to - from;
    read.at = at;
    parent.waiting++;
    tracker.below.submit(pool.get(READ, from, to - from, at, 0, read));
    return to;
  }

  /** Copies a part of a saved chunk that is zeros, or in memory: of a copy under way, or of the storage. False when it
   *  must be read. */
  #inMemory(holder: DiffArea, value: number, from: number, to: number, at: number): boolean {
    const { bytes } = this.#o.arena;
    if (value === ZERO) {
      bytes.fill(0, at, at + to - from);
      return true;
    }
    const chunk = chunkOf(from);
    const inChunk = from - chunk * CHUNK;
    if (value >= STORING) {
      const run = holder.runs[runOf(value)]!;
      const source = run.at + (chunk - run.first) * CHUNK + inChunk;
      bytes.copyWithin(at, source, source + to - from);
      return true;
    }
    const place = holder.storage.placeOf(value - FIRST_POSITION);
    if (place === NO_MEMORY) return false;
    bytes.copyWithin(at, place + inChunk, place + inChunk + to - from);
    return true;
  }

  #savedRow(parent: Bio, storage: DiffStorage, position: number, skip: number, offset: number): SavedRead {
    const row = this.#spareSaved.pop() ?? new SavedRead(this);
    parent.waiting++;
    row.parent = parent;
    row.storage = storage;
    row.position = position;
    row.skip = skip;
    row.offset = offset;
    row.count = 0;
    row.bytes = 0;
    return row;
  }

  /** The look again: what was saved while we read may have been overwritten under the read. */
  originRead(read: OriginRead, bio: Bio): void {
    const { area, pool } = this.#o;
    const { parent, offset, length, at } = read;
    const { status } = bio;
    pool.put(bio);
    this.#spareOrigin.push(read);
    if (status === 0 && area.brokenBy === 0 && this.#anySaved(offset, length)) {
      this.start(parent, offset, length, at);
    }
    this.#o.ended(parent, status);
  }

  #anySaved(offset: number, length: number): boolean {
    const { areas } = this.#o.tracker.cow;
    const index = areas.indexOf(this.#o.area);
    const last = chunkOf(offset + length - 1);
    for (let chunk = chunkOf(offset); chunk <= last; chunk++) {
      if (areas.lookUp(index, chunk) !== null) return true;
    }
    return false;
  }

  savedRead(row: SavedRead, result: number): void {
    const { parent, bytes } = row;
    this.#spareSaved.push(row);
    const lost = row.storage.lostAt(row.position);
    // Freed under the read, it would read as zeros.
    const gone = this.#o.area.released && this.#anyGone(row.offset, row.end);
    this.#o.ended(parent, lost !== 0 ? lost : result === bytes && !gone ? 0 : result < 0 ? -result : ERRNO.EIO);
  }

  #anyGone(offset: number, end: number): boolean {
    const { area, overlay } = this.#o;
    const last = chunkOf(end - 1);
    for (let chunk: ChunkIndex = chunkOf(offset); chunk <= last; chunk++) {
      if (area.table.get(chunk) === GONE && overlay.table.get(chunk) === UNSAVED) return true;
    }
    return false;
  }
}
