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
import { Take } from './take.ts';
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
    const take = await this.plan(trackers, storage, id);
    const began = performance.now();
    try {
      await take.freeze();
      take.switch();
    } catch (error) {
      await this.abandon(take);
      throw error;
    }
    const heldMs = performance.now() - began;
    take.thaw();
    return this.finish(take, { createdAt: Date.now(), heldMs });
  }

  /** The first step of a take: opens the storage, and takes all memory before anything is frozen. `abandon` or
   *  `finish` must follow. `others`: origins of the same take on other threads. Errors: as `create`. */
  async plan(
    trackers: readonly Tracker[],
    storage: DiffStorageOptions,
    id: string,
    others: readonly Origin[] = [],
  ): Promise<Take> {
    checkOrigins(trackers);
    this.#checkCounts(trackers);
    this.#taking.add(trackers);
    try {
      return await this.#plan(trackers, storage, id, others);
    } catch (error) {
      this.#taking.delete(trackers);
      throw error;
    }
  }

  async #plan(
    trackers: readonly Tracker[],
    storage: DiffStorageOptions,
    id: string,
    others: readonly Origin[],
  ): Promise<Take> {
    const { storagePortionBytes: portionBytes } = this.#parameters;
    const opened = await DiffStorage.open(
      this.#o.reactor,
      { portionBytes, ...storage },
      { lowSpace: (which) => this.#tell(id, which, null, 'lowSpace', null) },
    );
    try {
      refuseOwnStorage([...originsOf(trackers), ...others], opened.pieces[0]!);
      const disks = trackers.map((tracker) => ({
        tracker,
        area: new DiffArea(id, opened, tracker.disk.size, new Uint8Array(tracker.cbt.blockCount)),
      }));
      this.#storages.set(opened, new Set(disks.map(({ area }) => area)));
      return new Take(id, opened, disks, trackers);
    } catch (error) {
      await opened.close();
      throw error;
    }
  }

  /** The last step, once the take is switched and thawed: its snapshot is held. */
  finish(take: Take, { createdAt, heldMs }: { readonly createdAt: number; readonly heldMs: number }): Snapshot {
    const { reactor, pool } = this.#o;
    const { id, storage } = take;
    this.#taking.delete(take.trackers);
    const images = take.disks.map(({ tracker, area }) => {
      tracker.onBroken = (broken, errno) => this.#broken(tracker, broken, errno);
      return new SnapshotImage(tracker, area, `${tracker.disk.name}@${id}`, reactor, pool);
    });
    const snapshot = new Snapshot({ id, createdAt, images, storage, heldMs });
    this.#snapshots.set(id, snapshot);
    return snapshot;
  }

  /** Undoes a take that is not finished, at whatever step it is. */
  async abandon(take: Take): Promise<void> {
    take.thaw();
    this.#taking.delete(take.trackers);
    for (const { tracker, area } of take.disks) {
      const unused = take.switched ? tracker.cow.remove(area) : [area];
      for (const each of unused) await this.#release(each);
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
