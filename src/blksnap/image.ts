/** A snapshot image: the block device that shows an origin as it was at the take. Writable, unless the snapshot
 *  is persistent.
 *
 *  Large reads while the origin is being written go one at a time, in small steps, so that writes get in between, and at
 *  a pace while there are many.
 *
 *  Writes go to an overlay of the image's own, in the same storage, and mark both change maps. */

import type { Completion, Reactor } from '../io/reactor.ts';
import { BioQueue, DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, rangeError } from '../block/bio.ts';
import type { Bio, BioPool } from '../block/bio.ts';
import { pushExtent } from '../block/device.ts';
import type { BlockDevice, Capabilities, Extent } from '../block/device.ts';
import { assert, unreachable } from '../util/assert.ts';
import { ERRNO } from '../util/errors.ts';
import { GIB } from '../util/units.ts';
import { CHUNK, UNSAVED, ZERO, chunkOf } from './chunk-table.ts';
import type { DiffArea } from './diff-area.ts';
import { ImageOverlay } from './image-overlay.ts';
import { ImageReads } from './image-reads.ts';
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
  readonly #reactor: Reactor;
  readonly #overlay: ImageOverlay;
  readonly #reads: ImageReads;
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
    this.#reactor = reactor;
    const overlay = new ImageOverlay({ image: this, storage: area.storage, reactor, pool, size: area.size });
    this.#overlay = overlay;
    const ended = (parent: Bio, status: number): void => this.#partEnded(parent, status);
    this.#reads = new ImageReads({ tracker, area, overlay, arena: reactor.arena, pool, ended });
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
    this.#reads.start(bio, bio.offset, bio.length, bio.at);
    this.#partEnded(bio, 0);
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
        this.#partEnded(bio, 0);
        continue;
      }
      const length = Math.min(STEP_BYTES, bio.length - from);
      this.#steppedBytes += length;
      this.#reads.start(bio, bio.offset + from, length, bio.at + from);
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

  #partEnded(parent: Bio, status: number): void {
    if (status !== 0) parent.status = status;
    if (--parent.waiting > 0) {
      // One step a turn: the writes that came meanwhile go first.
      if (parent.waiting === 1 && parent === this.#stepping.peek() && !this.#inStep) this.#stepLater(this);
      return;
    }
    parent.end(this.area.brokenBy !== 0 ? ERRNO.EIO : parent.status);
    this.#left();
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
