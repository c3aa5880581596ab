/** The snapshots of an I/O thread as calls ask for them: of disks and partitions by name, their images offered.
 *
 *  Calls name a snapshot, or a part of one, by its own id. It is shown by that of the whole. */

import { createJournalFile, openJournalFile } from '../blksnap/journal-place.ts';
import type { Origin } from '../blksnap/origin-guard.ts';
import { READ_ONCE, ReadOnceImage } from '../blksnap/read-once-image.ts';
import type { SnapshotImage } from '../blksnap/image.ts';
import type { PersistentOptions } from '../blksnap/persistence.ts';
import type { SnapshotSet } from '../blksnap/snapshot-set.ts';
import type { Snapshot } from '../blksnap/snapshot.ts';
import type { Take } from '../blksnap/take.ts';
import type { Tracker } from '../blksnap/tracker.ts';
import type { BioPool } from '../block/bio.ts';
import { RangeDevice } from '../block/range-device.ts';
import type { DeviceRange } from '../block/range-device.ts';
import { BlksnapError, codeOfErrno } from '../util/errors.ts';
import type { Exports } from './exports.ts';
import { imageContexts } from './image-contexts.ts';
import type { IoCalls, SnapshotInfo } from './io-protocol.ts';
import { partitionGeneration, partitionHistory } from './partition-views.ts';
import { memoSchema } from './persistent-memo.ts';
import type { Whole } from './persistent-memo.ts';

/** An image as a snapshot's maker named it: of a disk, or of a partition. */
interface ImageView {
  readonly disk: string;
  readonly exportName: string;
  /** Of the whole disk. */
  readonly image: SnapshotImage;
  readonly range: DeviceRange | null;
}

/** What a snapshot is asked to show: a disk, or a partition. */
export interface WantedOrigin {
  readonly name: string;
  readonly tracker: Tracker;
  readonly range: DeviceRange | null;
}

/** A take over several threads, between its steps. */
interface PlannedTake {
  readonly take: Take;
  readonly origins: readonly WantedOrigin[];
  readonly shownId: string;
}

/** A snapshot as it is shown. */
interface Shown {
  readonly id: string;
  readonly images: readonly ImageView[];
}

export interface IoSnapshotsOptions {
  readonly set: SnapshotSet;
  readonly pool: BioPool;
  readonly exports: Exports;
  /** Ends an export and its connections. */
  readonly drop: (exportName: string) => Promise<void>;
  /** Errors: ENODEV, ENOENT. */
  readonly origin: (name: string) => WantedOrigin;
}

export class IoSnapshots {
  readonly #o: IoSnapshotsOptions;
  /** By the snapshot's own id. */
  readonly #shown = new Map<string, Shown>();
  readonly #takes = new Map<string, PlannedTake>();

  constructor(options: IoSnapshotsOptions) {
    this.#o = options;
  }

  list(): SnapshotInfo[] {
    return this.#o.set.list().map((snapshot) => this.#snapshotInfo(snapshot));
  }

  /** Ids of the held snapshots of a disk, as they are shown. */
  heldOf(disk: string): string[] {
    return this.#of(disk).map(({ id }) => this.#shownId(id));
  }

  /** Those of them that outlive the process. */
  persistentOf(disk: string): string[] {
    return this.#of(disk).flatMap(({ id, journal }) => (journal === null ? [] : [this.#shownId(id)]));
  }

  #of(disk: string): Snapshot[] {
    return this.#o.set.list().filter((snapshot) => snapshot.image(disk) !== undefined);
  }

  #shownId(id: string): string {
    return this.#shown.get(id)?.id ?? id;
  }

  async create(args: IoCalls['createSnapshot']['args']): Promise<SnapshotInfo> {
    const origins = this.#origins(args.disks);
    const storage = { path: args.storagePath, limitBytes: args.limitBytes ?? Infinity };
    const { id, journalPath } = args;
    const persistent = journalPath === undefined ? undefined : keptAs(origins, { journalPath });
    const snapshot = await this.#o.set.create(trackersOf(origins), storage, { id, persistent });
    return this.#offerImages(origins, snapshot, snapshot.id);
  }

  /** As SnapshotSet.restore. */
  async restore({ journalPath, whole }: IoCalls['restoreSnapshot']['args']): Promise<SnapshotInfo | null> {
    const restored = await this.#o.set.restore({
      place: openJournalFile(journalPath),
      tracker: (name) => this.#o.origin(name).tracker,
    });
    return restored && this.#offerImages(originsOf(restored.snapshot, restored.memo), restored.snapshot, whole.id);
  }

  /** As SnapshotSet.letGo. */
  async letGo(id: string): Promise<void> {
    await this.#takeBack(id);
    await this.#o.set.letGo(id);
  }

  async discard(journalPath: string): Promise<void> {
    await this.#o.set.discard({ place: openJournalFile(journalPath) });
  }

  #origins(disks: readonly string[]): WantedOrigin[] {
    return disks.map((name) => this.#o.origin(name));
  }

  originsOf(disks: readonly string[]): Origin[] {
    return this.#origins(disks).flatMap(({ tracker }) => tracker.origins);
  }

  async plan({ id, kept, ...args }: IoCalls['planSnapshot']['args']): Promise<void> {
    const origins = this.#origins(args.disks);
    const storage = { path: args.storagePath, limitBytes: args.limitBytes ?? Infinity };
    const persistent = kept && keptAs(origins, kept);
    const take = await this.#o.set.plan(trackersOf(origins), storage, { id, persistent });
    this.#takes.set(id, { take, origins, shownId: kept?.whole.id ?? id });
  }

  #planned(id: string): PlannedTake {
    const planned = this.#takes.get(id);
    if (planned === undefined) throw new BlksnapError('ESRCH', `No take "${id}" is under way`);
    return planned;
  }

  freeze(id: string): Promise<void> {
    return this.#planned(id).take.freeze();
  }

  switch(id: string): void {
    this.#planned(id).take.switch();
  }

  finish(id: string, createdAt: number): SnapshotInfo {
    const { take, origins, shownId } = this.#planned(id);
    this.#takes.delete(id);
    take.thaw();
    // How long all threads together held writes, the control thread knows.
    return this.#offerImages(origins, this.#o.set.finish(take, { createdAt, heldMs: 0 }), shownId);
  }

  async complete(id: string, heldMs: number): Promise<void> {
    await this.#o.set.complete(id, { heldMs });
  }

  async abandon(id: string): Promise<void> {
    const planned = this.#takes.get(id);
    if (planned === undefined) return;
    this.#takes.delete(id);
    await this.#o.set.abandon(planned.take);
  }

  #offerImages(origins: readonly WantedOrigin[], snapshot: Snapshot, shownId: string): SnapshotInfo {
    const images = origins.map(({ name, tracker, range }) => {
      const image = snapshot.images.find((one) => one.tracker === tracker)!;
      return { disk: name, exportName: `${name}@${shownId}`, image, range };
    });
    this.#shown.set(snapshot.id, { id: shownId, images });
    for (const { disk, exportName, image, range } of images) {
      const history = range === null ? image : partitionHistory(image, range);
      this.#o.exports.set(exportName, {
        name: exportName,
        description: `disk ${disk} as of ${new Date(snapshot.createdAt).toISOString()}`,
        device: range === null ? image : new RangeDevice(exportName, image, { ...range, pool: this.#o.pool }),
        contexts: (query) => imageContexts(history, query),
      });
      const once = new ReadOnceImage(image, `${exportName}${READ_ONCE}`);
      this.#o.exports.set(once.name, {
        name: once.name,
        description: `disk ${disk} as of ${new Date(snapshot.createdAt).toISOString()}, to be read once`,
        device: range === null ? once : new RangeDevice(once.name, once, { ...range, pool: this.#o.pool }),
        contexts: (query) => imageContexts(history, query),
      });
    }
    return this.#snapshotInfo(snapshot);
  }

  async append({ id, storagePath, limitBytes, others = [] }: IoCalls['appendStorage']['args']): Promise<SnapshotInfo> {
    if (storagePath !== null)
      await this.#o.set.append(id, { path: storagePath, limitBytes: limitBytes ?? Infinity }, others);
    else await this.#o.set.raiseLimit(id, limitBytes ?? Infinity);
    return this.#snapshotInfo(this.#o.set.get(id));
  }

  async destroy(id: string): Promise<void> {
    this.#o.set.get(id);
    await this.#takeBack(id);
    await this.#o.set.destroy(id);
  }

  async #takeBack(id: string): Promise<void> {
    for (const { exportName } of this.#shown.get(id)?.images ?? []) {
      await this.#o.drop(exportName);
      await this.#o.drop(`${exportName}${READ_ONCE}`);
    }
    this.#shown.delete(id);
  }

  #snapshotInfo(snapshot: Snapshot): SnapshotInfo {
    const { createdAt, heldMs, storage } = snapshot;
    const id = this.#shownId(snapshot.id);
    const images = (this.#shown.get(snapshot.id)?.images ?? []).map(({ disk, exportName, image, range }) => ({
      disk,
      exportName,
      size: range?.length ?? image.size,
      generationId: range === null ? image.generationId : partitionGeneration(image.generationId, range),
      changeNumber: image.changeNumber,
      error: image.corrupted === 0 ? null : codeOfErrno(image.corrupted),
    }));
    const { path: storagePath, usedBytes } = storage;
    const places = storage.pieces.map((piece) => ({ path: piece.path, limitBytes: finite(piece.limitBytes) }));
    const [limitBytes, persistent] = [finite(storage.limitBytes), snapshot.journal !== null];
    return { id, createdAt, heldMs, storagePath, places, usedBytes, limitBytes, persistent, images };
  }

  /** Ends all, also takes that are under way. */
  async close(): Promise<void> {
    for (const id of this.#takes.keys()) await this.abandon(id);
    await this.#o.set.close();
  }
}

/** How a persistent snapshot is kept, and what its journal remembers. */
function keptAs(
  origins: readonly WantedOrigin[],
  { journalPath, whole }: { readonly journalPath: string; readonly whole?: Whole | undefined },
): PersistentOptions {
  const asked = origins.map(({ name, tracker, range }) => ({ name, disk: tracker.disk.name, range: plain(range) }));
  const memo = whole === undefined ? { origins: asked } : { origins: asked, whole };
  return { open: () => createJournalFile(journalPath), memo };
}

/** What does not fit the snapshot's disks is left out. */
function originsOf(snapshot: Snapshot, memo: unknown): WantedOrigin[] {
  const { success, data } = memoSchema.safeParse(memo);
  return (success ? data.origins : []).flatMap(({ name, disk, range }) => {
    const image = snapshot.image(disk);
    if (image === undefined || (range !== null && range.offset + range.length > image.size)) return [];
    return [{ name, tracker: image.tracker, range }];
  });
}

function plain(range: DeviceRange | null): { offset: number; length: number } | null {
  return range && { offset: range.offset, length: range.length };
}

/** Two partitions of one disk have one. */
function trackersOf(origins: readonly WantedOrigin[]): Tracker[] {
  return [...new Set(origins.map(({ tracker }) => tracker))];
}

function finite(bytes: number): number | null {
  return Number.isFinite(bytes) ? bytes : null;
}
