/** A snapshot image: the block device that shows an origin as it was at the take. Writable, unless the snapshot
 *  is persistent.
 *
 *  Reads take no locks and never delay the origin: a chunk that no area has saved is read from the
 *  origin; when that read ends, the chunk's state is looked at again. Still unsaved means that no
 *  write can have passed meanwhile, so the data is right; otherwise the saved copy is read.
 *
 *  Large reads while the origin is being written go one at a time, in small steps, so that writes get in between, and at
 *  a pace while there are many.
 *
 *  Writes go to an overlay of the image's own, in the same storage, and mark both change maps. */

import { NO_MEMORY } from '../io/arena.ts';
import type { Arena } from '../io/arena.ts';
import type { Completion, Reactor } from '../io/reactor.ts';
import { BioQueue, DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, rangeError } from '../block/bio.ts';
import type { Bio, BioOwner, BioPool } from '../block/bio.ts';
import { pushExtent } from '../block/device.ts';
import type { BlockDevice, Capabilities, Extent } from '../block/device.ts';
import { assert, unreachable } from '../util/assert.ts';
import { ERRNO } from '../util/errors.ts';
import { GIB } from '../util/units.ts';
import { CHUNK, FIRST_POSITION, GONE, STORING, UNSAVED, ZERO, chunkOf, runOf } from './chunk-table.ts';
import type { ChunkIndex, ChunkTable } from './chunk-table.ts';
import type { DiffArea } from './diff-area.ts';
import { ImageOverlay } from './image-overlay.ts';
import type { Tracker } from './tracker.ts';

const CAPABILITIES: Capabilities = {
  flush: true,
  fua: true,
  discard: true,
  writeZeroes: true,
  fastZero: false,
  rotational: false,
};

/** What one answer about extents covers at most: every chunk is looked at. */
const EXTENTS_BYTES = GIB;

/** A step of a large read while the origin is written, and how long after a write that is. */
const STEP_BYTES = 32 * 1024;
const WRITTEN_MS = 10;
/** From one step to the next, while so little time has passed since the last write: 80 MiB/s leave most writes
 *  to a fast disk without a step beside them, and the reader's process little to compete for the processors with. */
const STEP_EVERY_MS = 0.4;
const BUSY_MS = 1;

/** Where a piece of a read came from; decides what is checked when it ends. */
type Source = 'origin' | 'storage';

/** A contiguous part of a read that one operation serves. Pooled. */
class Piece implements BioOwner, Completion {
  parent!: Bio;
  source: Source = 'origin';
  offset = 0;
  length = 0;
  at = 0;
  /** Of what comes from storage. */
  holder!: DiffArea;
  position = 0;
  readonly #image: SnapshotImage;

  constructor(image: SnapshotImage) {
    this.#image = image;
  }

  bioEnded(bio: Bio): void {
    this.#image.originRead(this, bio);
  }

  complete(result: number): void {
    this.#image.storageRead(this, result);
  }
}

export interface SnapshotImageOptions {
  readonly name: string;
  readonly reactor: Reactor;
  readonly pool: BioPool;
  /** Has `step` of the image called at the end of the reactor's turn. */
  readonly stepLater: (image: SnapshotImage) => void;
}

export class SnapshotImage implements BlockDevice {
  readonly name: string;
  readonly size: number;
  readonly logicalBlockSize: number;
  readonly physicalBlockSize: number;
  /** That of a persistent snapshot: what was written to it would not outlive the process. */
  readonly readOnly: boolean;
  readonly capabilities = CAPABILITIES;
  readonly area: DiffArea;
  readonly tracker: Tracker;
  readonly #pool: BioPool;
  readonly #arena: Arena;
  readonly #reactor: Reactor;
  readonly #overlay: ImageOverlay;
  readonly #sparePieces: Piece[] = [];
  /** Large reads that go step by step; the first is under way, and `#steppedBytes` of it are done or being read. */
  readonly #stepping = new BioQueue();
  #steppedBytes = 0;
  #inStep = false;
  /** When the last step began. */
  #stepMs = -Infinity;
  /** Wakes the reactor up for the next step, for it may be that nothing else does. Not by what is left of the rest: rounded,
   *  that could be too short for the clock to move. */
  readonly #alarm: Completion = { complete: () => void (this.#alarmSet = false) };
  #alarmSet = false;
  readonly #stepLater: (image: SnapshotImage) => void;
  #inFlight = 0;
  #closed = false;
  #idle: (() => void) | null = null;

  constructor(tracker: Tracker, area: DiffArea, { name, reactor, pool, stepLater }: SnapshotImageOptions) {
    const { disk } = tracker;
    this.#stepLater = stepLater;
    this.name = name;
    // Not the disk's: that may have changed since the take.
    this.size = area.size;
    this.logicalBlockSize = disk.logicalBlockSize;
    this.physicalBlockSize = Math.max(disk.physicalBlockSize, CHUNK);
    this.tracker = tracker;
    this.area = area;
    this.readOnly = area.journal !== null;
    this.#pool = pool;
    this.#arena = reactor.arena;
    this.#reactor = reactor;
    this.#overlay = new ImageOverlay({ image: this, storage: area.storage, reactor, pool, size: area.size });
  }

  /** Name of the disk that the image shows. */
  get origin(): string {
    return this.tracker.disk.name;
  }
  get generationId(): string {
    return this.area.generationId;
  }
  /** The snapshot's own number: what changed later has a higher one. */
  get changeNumber(): number {
    return this.area.changeNumber;
  }
  /** The origin is being written. */
  get givesWay(): boolean {
    return this.#reactor.now() - this.tracker.cbt.lastMarkMs < WRITTEN_MS;
  }
  /** 0, or why the image is lost (an errno). */
  get corrupted(): number {
    return this.area.brokenBy;
  }

  // --- bios -----------------------------------------------------------------------------------

  submit(bio: Bio): void {
    const error = this.#closed
      ? ERRNO.ESHUTDOWN
      : this.area.brokenBy !== 0
        ? ERRNO.EIO
        : rangeError(bio, this.size, this.readOnly);
    if (error !== 0) {
      bio.end(error);
      return;
    }
    switch (bio.op) {
      case READ:
        this.#read(bio);
        return;
      case FLUSH:
        // An image does not outlive the daemon: there is nothing to make durable.
        bio.end(0);
        return;
      case WRITE:
      case DISCARD:
      case WRITE_ZEROES:
        this.#inFlight++;
        this.#write(bio);
        return;
      default:
        unreachable(bio.op);
    }
  }

  #write(bio: Bio): void {
    const noted = this.tracker.markImageWrite(this.area, bio.offset, bio.length);
    if (noted === null) this.#overlay.submit(bio);
    else void noted.then(() => this.#overlay.submit(bio));
  }

  /** For the overlay: a write ended. */
  ended(bio: Bio, status: number): void {
    bio.end(this.area.brokenBy !== 0 ? ERRNO.EIO : status);
    this.#left();
  }

  #left(): void {
    if (--this.#inFlight === 0 && this.#idle !== null) this.#idle();
  }

  // --- reads ----------------------------------------------------------------------------------

  #read(bio: Bio): void {
    this.#inFlight++;
    bio.status = 0;
    bio.waiting = 1;
    if (bio.length > STEP_BYTES && this.givesWay) {
      this.#stepping.push(bio);
      if (this.#stepping.peek() === bio) this.step();
      return;
    }
    this.#readRange(bio, bio.offset, bio.length, bio.at);
    this.#pieceEnded(bio, 0);
  }

  /** Starts the next step of the first stepping read when nothing of it is under way, and it is time. What takes no I/O
   *  is no step. */
  step(): void {
    if (this.#inStep || this.#rests()) return;
    this.#inStep = true;
    this.#stepMs = this.#reactor.now();
    for (let bio = this.#stepping.peek(); bio?.waiting === 1; bio = this.#stepping.peek()) {
      const from = this.#steppedBytes;
      if (from === bio.length) {
        this.#stepping.shift();
        this.#steppedBytes = 0;
        this.#pieceEnded(bio, 0);
        continue;
      }
      const length = Math.min(STEP_BYTES, bio.length - from);
      this.#steppedBytes += length;
      this.#readRange(bio, bio.offset + from, length, bio.at + from);
    }
    this.#inStep = false;
  }

  /** Whether it is too early for a step; then it is tried again a turn later. */
  #rests(): boolean {
    const now = this.#reactor.now();
    const restMs = this.#stepMs + STEP_EVERY_MS - now;
    if (restMs <= 0 || now - this.tracker.cbt.lastMarkMs >= BUSY_MS) return false;
    if (!this.#alarmSet) {
      this.#alarmSet = true;
      this.#reactor.timer(STEP_EVERY_MS, this.#alarm);
    }
    this.#stepLater(this);
    return true;
  }

  #pieceEnded(parent: Bio, status: number): void {
    if (status !== 0) parent.status = status;
    if (--parent.waiting > 0) {
      // One step a turn: the writes that came meanwhile go first.
      if (parent.waiting === 1 && parent === this.#stepping.peek() && !this.#inStep) this.#stepLater(this);
      return;
    }
    parent.end(this.area.brokenBy !== 0 ? ERRNO.EIO : parent.status);
    this.#left();
  }

  /** Starts one operation for each part of the range that lies in one place. */
  #readRange(parent: Bio, offset: number, length: number, at: number): void {
    const cow = this.tracker.cow;
    const index = cow.areas.indexOf(this.area);
    const end = offset + length;
    let from = offset;
    while (from < end) {
      const chunk = chunkOf(from);
      const overlaid = this.#overlay.table.get(chunk);
      const holder = overlaid !== UNSAVED ? this.area : cow.areas.lookUp(index, chunk);
      if (holder === null) {
        from = this.#readOrigin(parent, index, from, end, at + from - offset);
        continue;
      }
      const value = overlaid !== UNSAVED ? overlaid : holder.table.get(chunk);
      if (value === GONE) {
        parent.status = ERRNO.EIO;
        from = (chunk + 1) * CHUNK;
        continue;
      }
      const table = overlaid !== UNSAVED ? this.#overlay.table : holder.table;
      from = this.#readSaved(parent, holder, table, value, from, end, at + from - offset);
    }
  }

  /** Reads as much as nobody has saved from the origin. Returns where it stopped. */
  #readOrigin(parent: Bio, index: number, from: number, end: number, at: number): number {
    const cow = this.tracker.cow;
    let to = (chunkOf(from) + 1) * CHUNK;
    while (
      to < end &&
      this.#overlay.table.get(chunkOf(to)) === UNSAVED &&
      cow.areas.lookUp(index, chunkOf(to)) === null
    )
      to += CHUNK;
    to = Math.min(to, end);
    const piece = this.#piece(parent, 'origin', from, to - from, at);
    this.tracker.below.submit(this.#pool.get(READ, from, to - from, at, 0, piece));
    return to;
  }

  /** Reads saved chunks: zeros, memory of a copy under way or of the storage, or those that lie in a row in its file. */
  #readSaved(
    parent: Bio,
    holder: DiffArea,
    table: ChunkTable,
    value: number,
    from: number,
    end: number,
    at: number,
  ): number {
    const chunk = chunkOf(from);
    let to = Math.min((chunk + 1) * CHUNK, end);
    const inChunk = from - chunk * CHUNK;
    if (value === ZERO) {
      this.#arena.bytes.fill(0, at, at + to - from);
      return to;
    }
    if (value >= STORING) {
      const run = holder.runs[runOf(value)]!;
      const source = run.at + (chunk - run.first) * CHUNK + inChunk;
      this.#arena.bytes.copyWithin(at, source, source + to - from);
      return to;
    }
    const place = holder.storage.placeOf(value - FIRST_POSITION);
    if (place !== NO_MEMORY) {
      this.#arena.bytes.copyWithin(at, place + inChunk, place + inChunk + to - from);
      return to;
    }
    for (let next = 1; to < end; next++) {
      const follows = (chunk + next) as ChunkIndex;
      if (table.get(follows) !== value + next) break;
      // A chunk of an area must not be covered by the overlay.
      if (table !== this.#overlay.table && this.#overlay.table.get(follows) !== UNSAVED) break;
      // Older areas come first: the row ends where one of them has saved the chunk. None comes before our own.
      if (
        table !== this.#overlay.table &&
        holder !== this.area &&
        this.tracker.cow.areas.lookUp(this.tracker.cow.areas.indexOf(this.area), follows) !== holder
      )
        break;
      to = Math.min(to + CHUNK, end);
    }
    const piece = this.#piece(parent, 'storage', from, to - from, at);
    piece.holder = holder;
    piece.position = value - FIRST_POSITION;
    holder.storage.read(value - FIRST_POSITION, inChunk, { at, length: to - from }, piece);
    return to;
  }

  #piece(parent: Bio, source: Source, offset: number, length: number, at: number): Piece {
    const piece = this.#sparePieces.pop() ?? new Piece(this);
    parent.waiting++;
    piece.parent = parent;
    piece.source = source;
    piece.offset = offset;
    piece.length = length;
    piece.at = at;
    return piece;
  }

  /** The look again: what was saved while we read may have been overwritten under the read. */
  originRead(piece: Piece, bio: Bio): void {
    const { parent, offset, length, at } = piece;
    const status = bio.status;
    this.#pool.put(bio);
    this.#sparePieces.push(piece);
    if (status === 0 && this.area.brokenBy === 0 && this.#anySaved(offset, length)) {
      this.#readRange(parent, offset, length, at);
    }
    this.#pieceEnded(parent, status);
  }

  #anySaved(offset: number, length: number): boolean {
    const cow = this.tracker.cow;
    const index = cow.areas.indexOf(this.area);
    const last = chunkOf(offset + length - 1);
    for (let chunk = chunkOf(offset); chunk <= last; chunk++) {
      if (cow.areas.lookUp(index, chunk) !== null) return true;
    }
    return false;
  }

  storageRead(piece: Piece, result: number): void {
    const { parent, length, holder, position } = piece;
    this.#sparePieces.push(piece);
    const lost = holder.storage.lostAt(position);
    // Freed under the read, it would read as zeros.
    const gone = this.area.released && this.#anyGone(piece.offset, length);
    this.#pieceEnded(parent, lost !== 0 ? lost : result === length && !gone ? 0 : result < 0 ? -result : ERRNO.EIO);
  }

  #anyGone(offset: number, length: number): boolean {
    const last = chunkOf(offset + length - 1);
    for (let chunk = chunkOf(offset); chunk <= last; chunk++) {
      if (this.area.table.get(chunk) === GONE && this.#overlay.table.get(chunk) === UNSAVED) return true;
    }
    return false;
  }

  /** A reader is done with the range: see CopyOnWrite.release. Reading it again ends with EIO, or with the right
   *  data where another snapshot, or a write to the image, still keeps it. */
  release(offset: number, length: number): void {
    if (!this.#closed) this.tracker.cow.release(this.area, offset, length);
  }

  // --- slow paths -----------------------------------------------------------------------------

  async extents(offset: number, length: number): Promise<Extent[]> {
    const result: Extent[] = [];
    const origin = await this.tracker.disk.extents(offset, Math.min(length, EXTENTS_BYTES));
    const cow = this.tracker.cow;
    const index = cow.areas.indexOf(this.area);
    let from = offset;
    for (const extent of origin) {
      const end = Math.min(from + extent.length, offset + length);
      while (from < end) {
        const chunk = chunkOf(from);
        const to = Math.min((chunk + 1) * CHUNK, end);
        const overlaid = this.#overlay.table.get(chunk);
        const value = overlaid !== UNSAVED ? overlaid : (cow.areas.lookUp(index, chunk)?.table.get(chunk) ?? UNSAVED);
        if (value === UNSAVED) pushExtent(result, to - from, extent.hole, extent.zero);
        else pushExtent(result, to - from, value === ZERO, value === ZERO);
        from = to;
      }
    }
    return result;
  }

  /** Which of the range's blocks changed after the snapshot with this number: runs of bytes, in order. */
  changedSince(number: number, offset: number, length: number): Array<{ length: number; changed: boolean }> {
    const { blockSize, frozenMap: map } = this.area;
    const end = Math.min(offset + length, this.size);
    const result: Array<{ length: number; changed: boolean }> = [];
    let from = offset;
    while (from < end) {
      const to = Math.min((Math.floor(from / blockSize) + 1) * blockSize, end);
      const changed = map[Math.floor(from / blockSize)]! > number;
      const last = result.at(-1);
      if (last?.changed === changed) last.length += to - from;
      else result.push({ length: to - from, changed });
      from = to;
    }
    return result;
  }

  /** Ends later bios with ESHUTDOWN and waits for those under way. Safe to call twice. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#inFlight > 0) await new Promise<void>((resolve) => (this.#idle = resolve));
    assert(this.#inFlight === 0, 'a closed image is idle');
    this.#overlay.close();
  }
}
