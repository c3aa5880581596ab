/** The snapshots of one I/O thread: take, look up, destroy.
 *
 *  A take is all or nothing: every disk is frozen, then every one switched, then every one thawed,
 *  so that all images show one instant. An error anywhere leaves nothing behind. */

import crypto from 'node:crypto';
import { assert } from '../util/assert.ts';
import { BlksnapError, codeOfErrno } from '../util/errors.ts';
import { completed } from '../io/reactor.ts';
import type { Reactor } from '../io/reactor.ts';
import type { BioPool } from '../block/bio.ts';
import { DiffArea } from './diff-area.ts';
import { DiffStorage } from './diff-storage.ts';
import type { DiffStorageOptions, StorageListener } from './diff-storage.ts';
import type { SnapshotEvent } from './events.ts';
import { SnapshotImage } from './image.ts';
import type { Journal } from './journal.ts';
import { completeJournal, layDown, placeNote, planJournal, refuseUnknowable } from './persistence.ts';
import type { PersistentOptions } from './persistence.ts';
import { DEFAULT_PARAMETERS } from './parameters.ts';
import type { Parameters } from './parameters.ts';
import { discardJournal, restoreSnapshot } from './restore-snapshot.ts';
import type { RestoreOptions } from './restore-snapshot.ts';
import { Snapshot } from './snapshot.ts';
import { namedPath } from './storage-place.ts';
import { portionFor } from './storage-portion.ts';
import type { Origin } from './origin-guard.ts';
import { refuseOwnStorage } from './origin-guard.ts';
import { Take } from './take.ts';
import type { Tracker } from './tracker.ts';

export interface CreateOptions {
  /** Where one was given out before; default: a new one. */
  readonly id?: string | undefined;
  /** The snapshot outlives the process. */
  readonly persistent?: PersistentOptions | undefined;
}

/** Everything of a storage that is in use. */
interface Use {
  /** Those that need it, also of destroyed snapshots. */
  readonly areas: Map<DiffArea, Tracker>;
  readonly journal: Journal | null;
}

/** Which piece of storage, and of what. */
interface PieceOf {
  readonly id: string;
  readonly piece: number;
  readonly persistent: boolean;
  readonly disks: ReadonlyArray<{ readonly size: number }>;
}

export interface PlanOptions {
  readonly id: string;
  readonly persistent?: PersistentOptions | undefined;
}

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
  readonly #storages = new Map<DiffStorage, Use>();
  /** Images whose next step is due. */
  #stepping: SnapshotImage[] = [];
  #spareStepping: SnapshotImage[] = [];
  /** Of the newest persistent snapshot. */
  #order = 0;

  constructor(options: SnapshotSetOptions) {
    this.#o = options;
    this.#parameters = options.parameters ?? DEFAULT_PARAMETERS;
    options.reactor.onTurnEnd(() => this.#turnEnded());
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

  /** Takes a snapshot of all the trackers' disks at one instant.
   *  Errors: EINVAL (no disk, or one twice), EBUSY (too many snapshots), those of the storage; the
   *  origins are then as before. */
  async create(
    trackers: readonly Tracker[],
    storage: DiffStorageOptions,
    { id = crypto.randomUUID(), persistent }: CreateOptions = {},
  ): Promise<Snapshot> {
    const take = await this.plan(trackers, storage, { id, persistent });
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
    const snapshot = this.finish(take, { createdAt: Date.now(), heldMs });
    if (persistent !== undefined) await this.complete(id, { heldMs });
    return snapshot;
  }

  /** What follows `finish` for a persistent snapshot: from the end of this on it outlives the process.
   *  Errors: as completeJournal; the snapshot is then destroyed. */
  async complete(id: string, { heldMs }: { readonly heldMs: number }): Promise<void> {
    const snapshot = this.get(id);
    assert(snapshot.journal !== null, 'it is a persistent snapshot');
    try {
      await completeJournal(snapshot, snapshot.journal, heldMs);
    } catch (cause) {
      if (this.#snapshots.has(id)) await this.destroy(id);
      throw cause;
    }
  }

  /** The first step of a take: opens the storage, and takes all memory before anything is frozen. `abandon` or
   *  `finish` must follow. Errors: as `create`. */
  async plan(trackers: readonly Tracker[], storage: DiffStorageOptions, options: PlanOptions): Promise<Take> {
    checkOrigins(trackers);
    this.#checkCounts(trackers);
    if (options.persistent !== undefined) refuseUnknowable(trackers);
    this.#taking.add(trackers);
    try {
      return await this.#plan(trackers, storage, options);
    } catch (error) {
      this.#taking.delete(trackers);
      throw error;
    }
  }

  async #plan(
    trackers: readonly Tracker[],
    storage: DiffStorageOptions,
    { id, persistent }: PlanOptions,
  ): Promise<Take> {
    const { reactor } = this.#o;
    const piece = { id, piece: 0, persistent: persistent !== undefined, disks: trackers.map(({ disk }) => disk) };
    const opened = await DiffStorage.open(
      reactor,
      this.#placeOf(storage, piece),
      this.#listener(() => id),
    );
    let journal: Journal | null = null;
    try {
      refuseOwnStorage(originsOf(trackers), opened.pieces[0]!);
      if (persistent !== undefined) {
        const order = ++this.#order;
        journal = await planJournal(reactor, persistent, { id, order, trackers, storage: opened });
      }
      const disks = trackers.map((tracker, disk) => ({
        tracker,
        area: new DiffArea(
          id,
          opened,
          tracker.disk.size,
          new Uint8Array(tracker.cbt.blockCount),
          journal && { journal, disk },
        ),
      }));
      this.#use(opened, disks, journal);
      return new Take({ id, storage: opened, disks, trackers, journal });
    } catch (error) {
      await opened.close();
      journal?.place.remove();
      await journal?.close();
      throw error;
    }
  }

  /** Where a piece of storage goes; of a persistent snapshot, under a name. Errors: EINVAL. */
  #placeOf(storage: DiffStorageOptions, { id, piece, persistent, disks }: PieceOf): DiffStorageOptions {
    const portionBytes = portionFor(disks, this.#parameters.storagePortionBytes);
    if (!persistent) return { portionBytes, ...storage };
    const path = storage.place === undefined ? namedPath(storage.path, { id, piece }) : storage.path;
    return { portionBytes, ...storage, path, persistentId: id };
  }

  /** `id`: of the snapshot, asked for when there is something to tell. */
  #listener(id: () => string): StorageListener {
    return {
      lowSpace: (which) => this.#low(id(), which),
      lost: (which, errno) => this.#lost(which, errno),
    };
  }

  /** Nobody knows what: no image that has anything there can be believed. */
  #lost(storage: DiffStorage, errno: number): void {
    for (const [area, { cow }] of this.#storages.get(storage)?.areas ?? []) cow.storageLost(area, errno);
  }

  /** From here on the storage and the journal are the areas'. */
  #use(storage: DiffStorage, disks: Take['disks'], journal: Journal | null): void {
    this.#storages.set(storage, { areas: new Map(disks.map(({ area, tracker }) => [area, tracker])), journal });
    if (journal === null) return;
    journal.onFrames = (frames) => {
      for (const { tracker, area } of disks) if (area.active) tracker.cbt.kept.advance(area.snapshotId, frames);
    };
    journal.onFailed = (errno) => {
      for (const { tracker, area } of disks) tracker.cow.break(area, errno, false);
    };
  }

  /** The last step, once the take is switched and thawed: its snapshot is held. */
  finish(take: Take, { createdAt, heldMs }: { readonly createdAt: number; readonly heldMs: number }): Snapshot {
    this.#taking.delete(take.trackers);
    return this.#hold(take, { createdAt, heldMs });
  }

  #hold(
    { id, storage, disks, journal }: Pick<Take, 'id' | 'storage' | 'disks' | 'journal'>,
    { createdAt, heldMs }: { readonly createdAt: number; readonly heldMs: number },
  ): Snapshot {
    const { reactor, pool } = this.#o;
    const stepLater = (image: SnapshotImage): void => void this.#stepping.push(image);
    const images = disks.map(({ tracker, area }) => {
      tracker.onBroken = (broken, errno) => this.#broken(tracker, broken, errno);
      tracker.onLeave = (leaving) => this.#leave(leaving);
      return new SnapshotImage(tracker, area, { name: `${tracker.disk.name}@${id}`, reactor, pool, stepLater });
    });
    const snapshot = new Snapshot({ id, createdAt, images, storage, heldMs, journal });
    this.#snapshots.set(id, snapshot);
    return snapshot;
  }

  /** Brings a persistent snapshot back; those of one disk in the order of their takes, before anything is written to it.
   *  Null for one whose take did not come to its end: it is removed. The place is the snapshot's then, or closed.
   *  Errors: as restoreSnapshot. */
  async restore(options: RestoreOptions): Promise<{ readonly snapshot: Snapshot; readonly memo: unknown } | null> {
    const { reactor } = this.#o;
    const { storagePortionBytes: portionBytes } = this.#parameters;
    let id = '';
    const listener = this.#listener(() => id);
    const restored = await restoreSnapshot(reactor, options, { portionBytes, listener });
    if (restored === null) {
      await this.discard(options);
      return null;
    }
    const { content, journal, storage, disks } = restored;
    const { plan, taken } = content;
    id = plan.id;
    this.#order = Math.max(this.#order, plan.order);
    for (const { tracker, area } of disks) {
      tracker.cow.add(area);
      if (area.active) tracker.cbt.kept.claim(id);
    }
    this.#use(storage, disks, journal);
    const { createdAt, heldMs } = taken!;
    return { snapshot: this.#hold({ id, storage, disks, journal }, { createdAt, heldMs }), memo: plan.memo };
  }

  /** Lets a snapshot that has just been brought back go again, as it was, for another start to bring back. Nothing may
   *  have been written to its disks meanwhile. Errors: ESRCH. */
  async letGo(id: string): Promise<void> {
    const { images } = this.get(id);
    this.#snapshots.delete(id);
    for (const image of images) {
      await image.close();
      image.tracker.cbt.kept.unclaim(id);
      for (const area of image.tracker.cow.remove(image.area)) await this.#release(area, true);
    }
  }

  /** Removes a persistent snapshot that is not held. Closes the place. */
  async discard(options: Omit<RestoreOptions, 'tracker'>): Promise<void> {
    await discardJournal(this.#o.reactor, options);
    options.place.close();
  }

  /** Undoes a take that is not finished, at whatever step it is. */
  async abandon(take: Take): Promise<void> {
    take.abandon();
    this.#taking.delete(take.trackers);
    for (const { tracker, area } of take.disks) {
      const unused = take.switched ? tracker.cow.remove(area) : [area];
      for (const each of unused) await this.#release(each);
    }
    take.journal?.place.remove();
  }

  /** Gives a held snapshot another place for what is still to be saved, used when those before it are full.
   *  `others`: origins of the same snapshot elsewhere. Errors: ESRCH, those of the storage. */
  async append(id: string, storage: DiffStorageOptions, others: readonly Origin[] = []): Promise<void> {
    const { images, storage: opened, journal } = this.get(id);
    const trackers = images.map(({ tracker }) => tracker);
    const next = { id, piece: opened.pieces.length, persistent: journal !== null, disks: images };
    const place = this.#placeOf(storage, next);
    await opened.addPlace(place, {
      check: (fd) => refuseOwnStorage([...originsOf(trackers), ...others], { path: place.path, fd }),
      before: async (piece) => await journal?.note({ place: placeNote(piece) }),
    });
  }

  /** Lets a held snapshot keep `limitBytes` in all. Errors: ESRCH; EINVAL when that is not more than before. */
  async raiseLimit(id: string, limitBytes: number): Promise<void> {
    const { storage, journal } = this.get(id);
    storage.raiseLimit(limitBytes);
    if (journal !== null) await journal.note({ limitBytes: placeNote(storage.pieces.at(-1)!).limitBytes });
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
    if (snapshot.journal !== null) forget(snapshot, snapshot.journal);
    for (const image of snapshot.images) {
      await image.close();
      for (const area of image.tracker.cow.remove(image.area)) await this.#release(area);
    }
  }

  /** Destroys all snapshots, newest first. Persistent ones are let go: they end with their disks' detaching, and are
   *  to be brought back. */
  async close(): Promise<void> {
    for (const { id, journal, images } of this.list().reverse()) {
      if (journal === null) {
        await this.destroy(id);
        continue;
      }
      this.#snapshots.delete(id);
      for (const image of images) {
        await image.close();
        image.area.leaving = true;
      }
    }
  }

  /** Nothing is written to the area's disk any more. */
  async #leave(area: DiffArea): Promise<boolean> {
    const whole = await layDown(this.#o.reactor, area);
    await this.#release(area, true);
    return whole;
  }

  async #release(area: DiffArea, keep = false): Promise<void> {
    while (area.busy) await completed((c) => void this.#o.reactor.timer(1, c));
    const use = this.#storages.get(area.storage);
    use?.areas.delete(area);
    if (use === undefined || use.areas.size > 0) return;
    this.#storages.delete(area.storage);
    await area.storage.close(keep);
    await use.journal?.close();
  }

  #turnEnded(): void {
    this.#flush();
    const due = this.#stepping;
    this.#stepping = this.#spareStepping;
    for (let i = 0; i < due.length; i++) due[i]!.step();
    due.length = 0;
    this.#spareStepping = due;
  }

  #flush(): void {
    for (const [storage, { journal }] of this.#storages) {
      storage.flush();
      journal?.flush();
    }
  }

  #broken(tracker: Tracker, area: DiffArea, errno: number): void {
    const error = codeOfErrno(errno);
    const { name } = tracker.disk;
    // For whoever wants to know why later; without it the snapshot does not come back at all.
    const { journal } = area;
    journal?.journal.note({ broken: { disk: journal.disk, errno } }).catch(() => {});
    const about = { disk: name, error };
    const { snapshotId, storage, askedBytes } = area;
    if (error === 'ENOSPC') this.#tell(snapshotId, storage, { ...about, code: 'noSpace', requestedBytes: askedBytes });
    this.#tell(snapshotId, storage, { ...about, code: 'corrupted', requestedBytes: null });
  }

  #low(id: string, storage: DiffStorage): void {
    this.#tell(id, storage, { disk: null, code: 'lowSpace', error: null, requestedBytes: storage.portionBytes });
  }

  #tell(
    snapshotId: string,
    { usedBytes, limitBytes }: DiffStorage,
    what: Pick<SnapshotEvent, 'disk' | 'code' | 'error' | 'requestedBytes'>,
  ): void {
    const event: SnapshotEvent = { time: Date.now(), snapshotId, ...what, usedBytes, limitBytes };
    this.#snapshots.get(snapshotId)?.addEvent(event);
    this.#o.onEvent?.(event);
  }
}

/** From here on nothing brings the snapshot back. */
function forget({ id, images, storage }: Snapshot, journal: Journal): void {
  for (const { tracker } of images) tracker.cbt.kept.drop(id);
  for (const piece of storage.pieces) piece.unlink();
  journal.place.remove();
}

function originsOf(trackers: readonly Tracker[]): Origin[] {
  return trackers.flatMap(({ origins }) => origins);
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
