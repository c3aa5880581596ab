/** blksnap's own filter: marks what changes, then copies on write while a snapshot is held.
 *
 *  Hot path: submit. A mark is made before the write goes on, and nothing that can fail lies
 *  between the two: a write is never passed on unmarked or uncopied. */

import { BlksnapError, ERRNO, toBlksnapError } from '../util/errors.ts';
import type { Arena } from '../io/arena.ts';
import type { Reactor } from '../io/reactor.ts';
import { FLUSH, changesData, rangeError, runBio } from '../block/bio.ts';
import type { Bio, BioPool } from '../block/bio.ts';
import { BlockFilter } from '../block/filter.ts';
import type { Disk } from '../block/disk.ts';
import { CbtMap } from './cbt-map.ts';
import type { TrackingLimits } from './cbt-map.ts';
import { CopyOnWrite } from './copy-on-write.ts';
import type { AreaJournal, DiffArea } from './diff-area.ts';
import { DEFAULT_PARAMETERS } from './parameters.ts';
import type { Origin } from './origin-guard.ts';
import type { Parameters } from './parameters.ts';

export const TRACKER_NAME = 'blksnap';
const TRACKER_ALTITUDE = 100;

export interface TrackerOptions {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  /** Memory that copies are made in, shared by the trackers of a thread and by nobody else. */
  readonly copyMemory: Arena;
  /** The change map's file; null keeps it in memory. */
  readonly mapPath: string | null;
  /** The origin's path, to notice writes made while it was not attached; null where there is none. */
  readonly originPath: string | null;
  /** Paths of what the disk lies on, where that changes; default: the origin's. */
  readonly liesOn?: (() => readonly string[]) | undefined;
  /** As in CbtMapOptions. */
  readonly originPrivate?: boolean;
  readonly parameters?: Parameters;
}

export class Tracker extends BlockFilter {
  readonly name = TRACKER_NAME;
  readonly altitude = TRACKER_ALTITUDE;
  readonly #options: TrackerOptions;
  readonly #parameters: Parameters;
  #disk: Disk | null = null;
  #cbt: CbtMap | null = null;
  #cow: CopyOnWrite | null = null;
  #size = 0;
  #readOnly = false;
  /** Hears that a snapshot's image of this disk was lost. */
  onBroken: (area: DiffArea, errno: number) => void = () => {};
  /** Lays an area down for the next process. Resolves with whether all of it is on stable storage. */
  onLeave: (area: DiffArea) => Promise<boolean> = () => Promise.resolve(false);

  constructor(options: TrackerOptions) {
    super();
    this.#options = options;
    this.#parameters = options.parameters ?? DEFAULT_PARAMETERS;
  }

  /** The origin's path, or null where it has none. */
  get originPath(): string | null {
    return this.#options.originPath;
  }

  /** For the guards: whatever its data lies on now. */
  get origins(): Origin[] {
    const { liesOn, originPath } = this.#options;
    const { name } = this.disk;
    return [originPath, ...(liesOn?.() ?? [])].map((path) => ({ name, path }));
  }

  get disk(): Disk {
    if (this.#disk === null) throw new BlksnapError('ENODEV', 'The tracker is not attached to a disk');
    return this.#disk;
  }

  get cbt(): CbtMap {
    if (this.#cbt === null) throw new BlksnapError('ENODEV', 'The tracker is not attached to a disk');
    return this.#cbt;
  }

  get cow(): CopyOnWrite {
    if (this.#cow === null) throw new BlksnapError('ENODEV', 'The tracker is not attached to a disk');
    return this.#cow;
  }

  submit(bio: Bio): void {
    if (changesData(bio.op)) {
      const error = rangeError(bio, this.#size, this.#readOnly);
      if (error !== 0) {
        bio.end(error);
        return;
      }
      this.#cbt!.mark(bio.offset, bio.length, this.#options.reactor.now());
      const cow = this.#cow!;
      if (cow.active && !cow.passable(bio)) {
        cow.hold(bio);
        return;
      }
    }
    this.below.submit(bio);
  }

  override async attach(disk: Disk): Promise<void> {
    const { mapPath, reactor, pool, copyMemory } = this.#options;
    this.#cbt = this.#openMap(mapPath, disk.size);
    this.#disk = disk;
    this.#size = disk.size;
    this.#readOnly = disk.readOnly;
    if (disk.device.onLost !== undefined) disk.device.onLost = () => this.#cbt?.noteLost();
    this.#cow = new CopyOnWrite({
      reactor,
      pool,
      memory: copyMemory,
      copyUnitBytes: this.#parameters.copyUnitBytes,
      timeoutMs: this.#parameters.cowTimeoutMs,
      above: this,
      holes: () => (this.below === disk.device ? (disk.device.holes ?? null) : null),
      onPass: () => this.#cbt!.touch(),
      onBroken: (area, errno) => {
        // Now it cannot fail, and the write that is not copied has not passed yet.
        if (area.journal !== null) this.#cbt!.kept.drop(area.snapshotId);
        this.onBroken(area, errno);
      },
    });
  }

  #openMap(path: string | null, deviceSize: number): CbtMap {
    const { originPath, originPrivate = false } = this.#options;
    return CbtMap.open({ path, deviceSize, originPath, originPrivate, limits: trackingLimits(this.#parameters) });
  }

  /** A new history begins. A map file that cannot be made is no reason to miss a change: memory will do. */
  override resized(size: number): void {
    let reason = `the disk was resized from ${this.#size} to ${size} bytes`;
    this.cbt.close();
    try {
      this.#cbt = this.#openMap(this.#options.mapPath, size);
    } catch (cause) {
      this.#cbt = this.#openMap(null, size);
      reason += `, and ${toBlksnapError(cause).message}`;
    }
    this.cbt.renew(reason);
    this.#size = size;
    this.cow.resized(size);
    for (const area of this.cow.areas.all) if (area.active) this.#keepOn(area);
  }

  /** Notes in a new map, too, that a persistent snapshot has all its copies. One of a disk that was cut ends
   *  with the process. */
  #keepOn(area: DiffArea): void {
    if (area.journal === null || area.size > this.#size) return;
    if (this.cbt.kept.keep(area.snapshotId, area.journal.journal.frames)) return;
    this.cow.break(area, ERRNO.ESTALE, false);
  }

  /** Writes have passed us by. Images show them, and the map does not have them. */
  doubt(reason: string): void {
    for (const area of this.cow.areas.all.filter(({ active }) => active)) this.cow.break(area, ERRNO.ESTALE, true);
    this.cbt.renew(reason);
  }

  override async detach(): Promise<void> {
    this.#refuseHeld();
    const settled = await this.#settle();
    // A take may have come in between.
    this.#refuseHeld();
    for (const area of this.cow.areas.all.filter(({ leaving, alive }) => leaving && alive)) {
      if (!(await this.onLeave(area))) this.cbt.kept.drop(area.snapshotId);
    }
    this.cbt.close(settled);
    this.#disk = null;
  }

  #refuseHeld(): void {
    const held = this.cow.areas.all.filter(({ alive, leaving }) => alive && !leaving).map((area) => area.snapshotId);
    if (held.length > 0) {
      throw new BlksnapError(
        'EBUSY',
        `Cannot detach disk "${this.disk.name}": snapshot ${held.join(', ')} is held; destroy it first`,
      );
    }
  }

  /** Whether all that was written is on stable storage: what a machine that stops takes back is a change, too. */
  async #settle(): Promise<boolean> {
    if (this.#readOnly || !this.disk.capabilities.flush) return true;
    return (await runBio(this.#options.pool, this.below, { op: FLUSH, offset: 0, length: 0 })) === 0;
  }

  /** Commands: `dirty` {offset, length}[] marks ranges changed, in the live and the frozen maps. */
  override async ctl(command: string, payload: unknown): Promise<unknown> {
    if (command !== 'dirty') throw new BlksnapError('EINVAL', `Filter "${TRACKER_NAME}" has no command "${command}"`);
    await this.markDirty(payload as ReadonlyArray<{ offset: number; length: number }>);
    return null;
  }

  /** Marks ranges changed although no write was seen; resolves when persistent snapshots have it in their journals.
   *  Errors: EINVAL, before anything is marked. */
  async markDirty(ranges: ReadonlyArray<{ readonly offset: number; readonly length: number }>): Promise<void> {
    for (const { offset, length } of ranges) {
      if (
        !Number.isSafeInteger(offset) ||
        !Number.isSafeInteger(length) ||
        offset < 0 ||
        length <= 0 ||
        offset + length > this.#size
      ) {
        throw new BlksnapError(
          'EINVAL',
          `Cannot mark ${length} bytes at ${offset} of disk "${this.disk.name}": its size is ${this.#size}`,
        );
      }
    }
    for (const { offset, length } of ranges) await this.#markFrom(0, offset, length);
  }

  /** Marks what is written to a snapshot's image: in its own map, in those of all newer snapshots
   *  (an increment on a backup of this image must not miss it), and in the live map. A promise where journals
   *  must have it before the write goes on. */
  markImageWrite(area: DiffArea, offset: number, length: number): Promise<void> | null {
    return this.#markFrom(this.cow.areas.indexOf(area), offset, length);
  }

  /** Each frozen map is marked with its own number: changed in the period that its take ended. */
  #markFrom(index: number, offset: number, length: number): Promise<void> | null {
    const { cbt, cow } = this;
    cbt.markOnly(offset, length);
    const areas = cow.areas.all.slice(index);
    for (const { frozenMap, changeNumber, blockSize } of areas) {
      const first = Math.floor(offset / blockSize);
      const end = Math.floor((offset + length - 1) / blockSize) + 1;
      frozenMap.fill(changeNumber, first, end);
    }
    const journals = areas.flatMap(({ active, journal }) => (active && journal !== null ? [journal] : []));
    return journals.length === 0 ? null : noteDirty(journals, offset, length);
  }
}

/** A snapshot whose journal does not take the note must not come back. */
async function noteDirty(journals: readonly AreaJournal[], offset: number, length: number): Promise<void> {
  for (const { journal, disk } of journals) {
    await journal
      .note({ dirty: { disk, offset, length } })
      .catch((cause: unknown) => journal.fail(toBlksnapError(cause).errno));
  }
}

function trackingLimits(parameters: Parameters): TrackingLimits {
  const { trackingBlockMinShift, trackingBlockMaxShift, trackingBlockMaxCount } = parameters;
  return { minShift: trackingBlockMinShift, maxShift: trackingBlockMaxShift, maxCount: trackingBlockMaxCount };
}
