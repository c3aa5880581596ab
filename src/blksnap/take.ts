/** A take in its steps: planned (storage open, all memory there, change maps copied), frozen, switched, thawed. `SnapshotSet.create` goes
 *  through them at once; a take over several I/O threads goes through each step on all of them before the next. */

import type { Disk } from '../block/disk.ts';
import { BlksnapError } from '../util/errors.ts';
import type { DiffArea } from './diff-area.ts';
import type { DiffStorage } from './diff-storage.ts';
import type { Journal } from './journal.ts';
import type { MapCopy } from './map-copy.ts';
import type { Tracker } from './tracker.ts';

export interface PlannedDisk {
  readonly tracker: Tracker;
  readonly area: DiffArea;
}

export class Take {
  readonly id: string;
  readonly storage: DiffStorage;
  readonly disks: readonly PlannedDisk[];
  readonly trackers: readonly Tracker[];
  /** Of a persistent snapshot. */
  readonly journal: Journal | null;
  /** Also of a tracker that is detached meanwhile. */
  readonly #gates: readonly Disk[];
  readonly #copies: readonly MapCopy[];
  #frozen = false;
  #switched = false;

  constructor(options: {
    id: string;
    storage: DiffStorage;
    disks: readonly PlannedDisk[];
    trackers: readonly Tracker[];
    journal: Journal | null;
  }) {
    this.id = options.id;
    this.storage = options.storage;
    this.disks = options.disks;
    this.trackers = options.trackers;
    this.journal = options.journal;
    this.#gates = this.disks.map(({ tracker }) => tracker.disk);
    this.#copies = this.disks.map(({ tracker, area }) => tracker.cbt.copyTo(area.frozenMap));
  }

  get switched(): boolean {
    return this.#switched;
  }

  /** Holds new bios; resolves when none is on its way to any of the disks. Needs its thaw, also when it was not awaited. */
  async freeze(): Promise<void> {
    this.#frozen = true;
    await Promise.all(this.#gates.map((disk) => disk.freeze()));
  }

  /** All disks are frozen: the instant that the images show. Errors, and then nothing is switched: ENODEV, EBUSY for a
   *  disk that has changed since the plan. */
  switch(): void {
    for (const { tracker, area } of this.disks) refuseChanged(tracker, area);
    this.#switched = true;
    for (const [index, { tracker, area }] of this.disks.entries()) {
      area.freeze(tracker.cbt, this.#copies[index]!);
      tracker.cow.add(area);
    }
  }

  /** Undoes the plan and the freeze. */
  abandon(): void {
    this.thaw();
    for (const copy of this.#copies) copy.drop();
  }

  /** Safe to call twice. */
  thaw(): void {
    if (!this.#frozen) return;
    this.#frozen = false;
    for (const disk of this.#gates) disk.thaw();
  }
}

/** Before the freeze a disk may have been detached (ENODEV) or got another size (EBUSY). */
function refuseChanged({ disk }: Tracker, area: DiffArea): void {
  if (disk.size === area.size) return;
  throw new BlksnapError(
    'EBUSY',
    `Cannot take a snapshot of disk "${disk.name}": its size has just changed from ${area.size} to ${disk.size} bytes; try again`,
  );
}
