/** Snapshots in one's own process, without a daemon: open disks, write and read them, take snapshots,
 *  read their images.
 *
 *  ```ts
 *  import { Embedded } from 'blksnap';
 *
 *  const embedded = await Embedded.open();
 *  const disk = await embedded.openDisk('disk.img');
 *  await disk.write(0, Buffer.alloc(4096, 'old '));
 *  const snapshot = await embedded.snapshot([disk]);
 *  await disk.write(0, Buffer.alloc(4096, 'new '));
 *  const before = await snapshot.image(disk).read(0, 4);
 *  console.log(before.toString()); // "old "
 *  await snapshot.destroy();
 *  await embedded.close();
 *  ```
 *
 *  Slow paths: a promise for each call. Locks, origin rules and failures are those of the daemon. */

import path from 'node:path';
import { Bytes } from '../block/bytes.ts';
import { BioPool } from '../block/bio.ts';
import { Disk } from '../block/disk.ts';
import type { FilterHost } from '../block/filter.ts';
import { openDevice } from '../block/open.ts';
import { Arena, NO_MEMORY } from '../io/arena.ts';
import { openReactor } from '../io/open.ts';
import type { DriverName } from '../io/open.ts';
import type { Reactor } from '../io/reactor.ts';
import { NbdClient } from '../nbd/client.ts';
import { parseNbdUri } from '../nbd/uri.ts';
import { assert } from '../util/assert.ts';
import { BlksnapError } from '../util/errors.ts';
import type { SnapshotEvent } from './events.ts';
import { checkedParameters } from './parameters.ts';
import type { Parameters } from './parameters.ts';
import type { Snapshot } from './snapshot.ts';
import { SnapshotSet } from './snapshot-set.ts';
import { Tracker } from './tracker.ts';

export interface EmbeddedOptions {
  /** Default: the best that works here. */
  readonly driver?: DriverName;
  /** In place of defaults. */
  readonly parameters?: Partial<Parameters>;
  /** Hears what happens to snapshots. */
  readonly onEvent?: (event: SnapshotEvent) => void;
}

export interface OpenDiskOptions {
  /** Default: the file's name. */
  readonly name?: string;
  readonly readOnly?: boolean;
  readonly direct?: boolean;
  /** A file to keep the change history in; without it history ends with the process. */
  readonly mapPath?: string;
}

/** An open disk: read and write it, and see what changed. */
export class EmbeddedDisk extends Bytes {
  readonly disk: Disk;
  readonly tracker: Tracker;

  constructor(disk: Disk, tracker: Tracker, host: FilterHost) {
    super(disk, host);
    this.disk = disk;
    this.tracker = tracker;
  }

  get name(): string {
    return this.disk.name;
  }
}

/** A held snapshot and the images of its disks. */
export class EmbeddedSnapshot {
  readonly snapshot: Snapshot;
  readonly #set: SnapshotSet;
  readonly #host: FilterHost;

  constructor(snapshot: Snapshot, set: SnapshotSet, host: FilterHost) {
    this.snapshot = snapshot;
    this.#set = set;
    this.#host = host;
  }

  get id(): string {
    return this.snapshot.id;
  }

  /** The disk as it was at the take; writable. Errors: ENOENT for a disk that is not in the snapshot. */
  image(disk: EmbeddedDisk): Bytes {
    const image = this.snapshot.image(disk.name);
    if (image === undefined) throw new BlksnapError('ENOENT', `Disk "${disk.name}" is not in snapshot "${this.id}"`);
    return new Bytes(image, this.#host);
  }

  /** Which parts of the disk changed after the snapshot with this number and before this one. */
  changedSince(disk: EmbeddedDisk, number: number): Array<{ offset: number; length: number }> {
    const image = this.snapshot.image(disk.name);
    if (image === undefined) throw new BlksnapError('ENOENT', `Disk "${disk.name}" is not in snapshot "${this.id}"`);
    const ranges: Array<{ offset: number; length: number }> = [];
    let offset = 0;
    for (const { length, changed } of image.changedSince(number, 0, image.size)) {
      if (changed) ranges.push({ offset, length });
      offset += length;
    }
    return ranges;
  }

  async destroy(): Promise<void> {
    await this.#set.destroy(this.id);
  }
}

export class Embedded implements FilterHost {
  readonly reactor: Reactor;
  readonly pool = new BioPool();
  readonly #parameters: Parameters;
  readonly #copyMemory: Arena;
  readonly #copyAt: number;
  readonly #set: SnapshotSet;
  readonly #disks: EmbeddedDisk[] = [];
  readonly #exports: NbdClient[] = [];

  /** Errors: EINVAL for parameters that are out of range. */
  static async open(options: EmbeddedOptions = {}): Promise<Embedded> {
    const parameters = checkedParameters(options.parameters ?? {});
    const { arenaBytes } = parameters;
    const driver = options.driver === undefined ? {} : { driver: options.driver };
    return new Embedded(await openReactor({ ...driver, arenaBytes, cooperative: true }), parameters, options);
  }

  private constructor(reactor: Reactor, parameters: Parameters, { onEvent }: EmbeddedOptions) {
    const { arena } = reactor;
    this.reactor = reactor;
    this.#parameters = parameters;
    this.#copyAt = arena.allocate(parameters.copyMemoryBytes);
    assert(this.#copyAt !== NO_MEMORY, 'the arena has room for copy-on-write');
    const part = { at: this.#copyAt, length: parameters.copyMemoryBytes };
    this.#copyMemory = new Arena(arena.bytes.buffer, arena.address, part);
    this.#set = new SnapshotSet({ reactor, pool: this.pool, parameters, ...(onEvent && { onEvent }) });
  }

  /** Opens a file or kernel device, exclusively, and tracks its changes. Errors: ENOENT, EBUSY, …: what the path fails with. */
  async openDisk(file: string, options: OpenDiskOptions = {}): Promise<EmbeddedDisk> {
    const { reactor, pool } = this;
    const { name = path.basename(file), readOnly = false, direct = false, mapPath = null } = options;
    const disk = new Disk(name, await openDevice(file, { reactor, readOnly, direct }));
    const memory = { reactor, pool, copyMemory: this.#copyMemory, parameters: this.#parameters };
    const tracker = new Tracker({ ...memory, mapPath, originPath: path.resolve(file) });
    try {
      await disk.attachFilter(tracker);
    } catch (cause) {
      await disk.close();
      throw cause;
    }
    const opened = new EmbeddedDisk(disk, tracker, this);
    this.#disks.push(opened);
    return opened;
  }

  /** Opens an NBD export: an image of a daemon's snapshot, or any server's. */
  async openExport(uri: string): Promise<Bytes> {
    const client = await NbdClient.connect({ ...parseNbdUri(uri), reactor: this.reactor });
    this.#exports.push(client);
    return new Bytes(client, this);
  }

  /** Freezes disks at one instant. `storage`: a directory, a new or unused file, a block device; default: memory.
   *  Errors: EINVAL for no disk or one twice; what the storage fails with. */
  async snapshot(
    disks: readonly EmbeddedDisk[],
    { storage = ':memory:', limitBytes = Infinity }: { readonly storage?: string; readonly limitBytes?: number } = {},
  ): Promise<EmbeddedSnapshot> {
    const trackers = disks.map(({ tracker }) => tracker);
    const snapshot = await this.#set.create(trackers, { path: storage, limitBytes });
    return new EmbeddedSnapshot(snapshot, this.#set, this);
  }

  /** Destroys the snapshots, closes disks and exports. No call may be under way. */
  async close(): Promise<void> {
    await this.#set.close();
    for (const client of this.#exports.splice(0)) await client.close();
    for (const { disk } of this.#disks.splice(0)) await disk.close();
    this.reactor.arena.release(this.#copyAt);
    await this.reactor.close();
  }
}
