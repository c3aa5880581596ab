/** The snapshots of one I/O thread: take, look up, destroy.
 *
 *  A take is all or nothing: every disk is frozen, then every one switched, then every one thawed,
 *  so that all images show one instant. An error anywhere leaves nothing behind. */

import crypto from 'node:crypto';
import { BlksnapError, codeOfErrno } from '../util/errors.ts';
import type { ErrorCode } from '../util/errors.ts';
import { completed } from '../io/reactor.ts';
import type { Reactor } from '../io/reactor.ts';
import type { BioPool } from '../block/bio.ts';
import { DiffArea } from './diff-area.ts';
import { DiffStorage } from './diff-storage.ts';
import type { DiffStorageOptions } from './diff-storage.ts';
import type { SnapshotEvent } from './events.ts';
import { SnapshotImage } from './image.ts';
import { DEFAULT_PARAMETERS } from './parameters.ts';
import type { Parameters } from './parameters.ts';
import { Snapshot } from './snapshot.ts';
import type { Origin } from './origin-guard.ts';
import { refuseOwnStorage } from './origin-guard.ts';
import type { Tracker } from './tracker.ts';

export interface SnapshotSetOptions {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  readonly parameters?: Parameters;
  /** Hears every event as it happens. */
  readonly onEvent?: (event: SnapshotEvent) => void;
}

export class SnapshotSet {
  readonly #o: SnapshotSetOptions;
  readonly #snapshots = new Map<string, Snapshot>();
  readonly #parameters: Parameters;
  /** The disks of takes that are under way. */
  readonly #taking = new Set<readonly Tracker[]>();
  /** Every storage in use, also of destroyed snapshots, by the areas that need it. */
  readonly #storages = new Map<DiffStorage, Set<DiffArea>>();

  constructor(options: SnapshotSetOptions) {
    this.#o = options;
    this.#parameters = options.parameters ?? DEFAULT_PARAMETERS;
    options.reactor.onTurnEnd(() => this.#flush());
  }

  list(): Snapshot[] {
    return [...this.#snapshots.values()];
  }

  /** Errors: ESRCH. */
  get(id: string): Snapshot {
    const snapshot = this.#snapshots.get(id);
    if (snapshot === undefined)
      throw new BlksnapError('ESRCH', `No snapshot "${id}"; "blksnap snapshot list" shows them`);
    return snapshot;
  }

  /** Takes a snapshot of all the trackers' disks at one instant. `id`: where one was given out before.
   *  Errors: EINVAL (no disk, or one twice), EBUSY (too many snapshots), those of the storage; the
   *  origins are then as before. */
  async create(
    trackers: readonly Tracker[],
    storage: DiffStorageOptions,
    id: string = crypto.randomUUID(),
  ): Promise<Snapshot> {
    checkOrigins(trackers);
    this.#checkCounts(trackers);
    this.#taking.add(trackers);
    try {
      return await this.#create(trackers, storage, id);
    } finally {
      this.#taking.delete(trackers);
    }
  }

  async #create(trackers: readonly Tracker[], storage: DiffStorageOptions, id: string): Promise<Snapshot> {
    const { storagePortionBytes: portionBytes } = this.#parameters;
    const opened = await DiffStorage.open(
      this.#o.reactor,
      { portionBytes, ...storage },
      { lowSpace: (which) => this.#tell(id, which, null, 'lowSpace', null) },
    );
    const areas = new Set<DiffArea>();
    this.#storages.set(opened, areas);
    try {
      refuseOwnStorage(originsOf(trackers), opened.pieces[0]!);
      // All memory is taken before anything is frozen.
      const planned = trackers.map((tracker) => ({
        tracker,
        area: new DiffArea(id, opened, tracker.disk.size, new Uint8Array(tracker.cbt.blockCount)),
      }));
      const { createdAt, heldMs } = await take(planned);
      for (const { area } of planned) areas.add(area);
      const { reactor, pool } = this.#o;
      const images = planned.map(({ tracker, area }) => {
        tracker.onBroken = (broken, errno) => this.#broken(tracker, broken, errno);
        return new SnapshotImage(tracker, area, `${tracker.disk.name}@${id}`, reactor, pool);
      });
      const snapshot = new Snapshot({ id, createdAt, images, storage: opened, heldMs });
      this.#snapshots.set(id, snapshot);
      return snapshot;
    } catch (error) {
      this.#storages.delete(opened);
      await opened.close();
      throw error;
    }
  }

  /** Gives a held snapshot another place for what is still to be saved, used when those before it are full.
   *  Errors: ESRCH, those of the storage. */
  async append(id: string, storage: DiffStorageOptions): Promise<void> {
    const { images, storage: opened } = this.get(id);
    const { storagePortionBytes: portionBytes } = this.#parameters;
    const trackers = images.map(({ tracker }) => tracker);
    await opened.addPlace({ portionBytes, ...storage }, (fd) =>
      refuseOwnStorage(originsOf(trackers), { path: storage.path, fd }),
    );
  }

  /** Lets a held snapshot keep `limitBytes` in all. Errors: ESRCH; EINVAL when that is not more than before. */
  raiseLimit(id: string, limitBytes: number): void {
    this.get(id).storage.raiseLimit(limitBytes);
  }

  #checkCounts(trackers: readonly Tracker[]): void {
    const { maxSnapshots, maxSnapshotsPerDisk } = this.#parameters;
    const held = [...this.list().map(({ images }) => images.map(({ tracker }) => tracker)), ...this.#taking];
    if (held.length >= maxSnapshots) {
      throw new BlksnapError(
        'EBUSY',
        `Cannot take a snapshot: ${held.length} are held, as many as --max-snapshots allows; destroy one first`,
      );
    }
    for (const tracker of trackers) {
      const count = held.filter((others) => others.includes(tracker)).length;
      if (count < maxSnapshotsPerDisk) continue;
      throw new BlksnapError(
        'EBUSY',
        `Cannot take a snapshot of disk "${tracker.disk.name}": ${count} of it are held, as many as --max-snapshots-per-disk allows; destroy one first`,
      );
    }
  }

  /** Lets the snapshot go: its images end, its space comes back unless an older image needs some of
   *  it. The images must no longer be served. Errors: ESRCH. */
  async destroy(id: string): Promise<void> {
    const snapshot = this.get(id);
    this.#snapshots.delete(id);
    for (const image of snapshot.images) {
      await image.close();
      for (const area of image.tracker.cow.remove(image.area)) await this.#release(area);
    }
  }

  /** Destroys all snapshots, newest first. */
  async close(): Promise<void> {
    for (const { id } of this.list().reverse()) await this.destroy(id);
  }

  async #release(area: DiffArea): Promise<void> {
    while (area.busy) await completed((c) => void this.#o.reactor.timer(1, c));
    const users = this.#storages.get(area.storage);
    users?.delete(area);
    if (users?.size !== 0) return;
    this.#storages.delete(area.storage);
    await area.storage.close();
  }

  #flush(): void {
    for (const storage of this.#storages.keys()) storage.flush();
  }

  #broken(tracker: Tracker, area: DiffArea, errno: number): void {
    const error = codeOfErrno(errno);
    const { name } = tracker.disk;
    if (error === 'ENOSPC') this.#tell(area.snapshotId, area.storage, name, 'noSpace', error);
    this.#tell(area.snapshotId, area.storage, name, 'corrupted', error);
  }

  #tell(
    id: string,
    storage: DiffStorage,
    disk: string | null,
    code: SnapshotEvent['code'],
    error: ErrorCode | null,
  ): void {
    const { usedBytes, limitBytes } = storage;
    const event: SnapshotEvent = { time: Date.now(), snapshotId: id, disk, code, error, usedBytes, limitBytes };
    this.#snapshots.get(id)?.addEvent(event);
    this.#o.onEvent?.(event);
  }
}

function originsOf(trackers: readonly Tracker[]): Origin[] {
  return trackers.map(({ disk, originPath }) => ({ name: disk.name, path: originPath }));
}

function checkOrigins(trackers: readonly Tracker[]): void {
  if (trackers.length === 0) throw new BlksnapError('EINVAL', 'Cannot take a snapshot of no disk: name at least one');
  const seen = new Set<Tracker>();
  for (const tracker of trackers) {
    if (seen.has(tracker)) {
      throw new BlksnapError(
        'EINVAL',
        `Cannot take a snapshot of disk "${tracker.disk.name}" twice at once: name it once`,
      );
    }
    seen.add(tracker);
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

/** Freezes all, looks at all once more, switches all, thaws all. Once one is switched nothing can fail. */
async function take(
  planned: ReadonlyArray<{ tracker: Tracker; area: DiffArea }>,
): Promise<{ createdAt: number; heldMs: number }> {
  const began = performance.now();
  const disks = planned.map(({ tracker }) => tracker.disk);
  try {
    await Promise.all(disks.map((disk) => disk.freeze()));
    for (const { tracker, area } of planned) refuseChanged(tracker, area);
    for (const { tracker, area } of planned) {
      area.freeze(tracker.cbt);
      tracker.cow.add(area);
    }
    return { createdAt: Date.now(), heldMs: performance.now() - began };
  } finally {
    for (const disk of disks) disk.thaw();
  }
}
