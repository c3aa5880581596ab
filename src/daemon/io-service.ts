/** What an I/O thread does for the control thread: disks, their trackers, snapshots, and the NBD
 *  server that serves them. Runs on the reactor's thread; every handler is a slow path.
 *
 *  The control thread sees to it that operations on one disk follow one another. */

import fs from 'node:fs';
import { openPoint } from '../backup/open-point.ts';
import type { SnapshotEvent } from '../blksnap/events.ts';
import { SnapshotSet } from '../blksnap/snapshot-set.ts';
import { refuseSharedOrigin } from '../blksnap/origin-guard.ts';
import type { Parameters } from '../blksnap/parameters.ts';
import { Tracker } from '../blksnap/tracker.ts';
import { BioPool } from '../block/bio.ts';
import { Disk } from '../block/disk.ts';
import type { BlockDevice } from '../block/device.ts';
import { RangeDevice } from '../block/range-device.ts';
import type { DeviceRange } from '../block/range-device.ts';
import { openDevice } from '../block/open.ts';
import { OverlayDevice } from '../block/overlay-device.ts';
import { openOverlayStorage } from '../block/overlay-storage.ts';
import { Arena, NO_MEMORY } from '../io/arena.ts';
import { completed } from '../io/reactor.ts';
import type { Reactor, SocketAddress } from '../io/reactor.ts';
import { NAMELESS, userPeer } from '../nbd/peer.ts';
import { becomeIoFlusher } from '../io/control-sys.ts';
import { servedExport, UblkQueues } from '../kernel/ublk-queues.ts';
import { NbdServer } from '../nbd/server.ts';
import type { HandedOver, Visitor } from '../nbd/server.ts';
import { assert } from '../util/assert.ts';
import { BlksnapError, errnoError, toBlksnapError } from '../util/errors.ts';
import { Access } from './access.ts';
import type { DiskFilters } from './disk-filters.ts';
import type { Claim } from './backings.ts';
import { diskInfo, partitionInfo } from './disk-info.ts';
import { wholeDisk } from './disk-names.ts';
import { Exports } from './exports.ts';
import type { DiskInfo, ExportChange, IoCalls, IoHandlers } from './io-protocol.ts';
import { IoSnapshots } from './io-snapshots.ts';
import { MappedDisks } from './mapped-disks.ts';
import { PartitionDisks } from './partition-disks.ts';
import type { PartitionDisk } from './partition-disks.ts';
import { cbtMapPart, rangesOnDisk } from './partition-views.ts';
import type { KeptFilter } from './state.ts';

/** A disk, and what must be closed after it. */
interface Served {
  readonly disk: Disk;
  readonly tracker: Tracker;
  readonly closeBase: () => Promise<void>;
}

const CLIENT_LEAVES_MS = 200;

export interface IoServiceOptions {
  readonly reactor: Reactor;
  readonly parameters: Parameters;
  readonly filters: DiskFilters;
  readonly onEvent: (event: SnapshotEvent) => void;
  readonly onExportChange: (change: ExportChange) => void;
  /** Hears of clients whose exports are on other threads. */
  readonly onHandOver: (client: HandedOver) => void;
  /** Hears that the kernel's connection to an export has ended. */
  readonly onKernelLeft: (exportName: string) => void;
}

export class IoService {
  readonly #reactor: Reactor;
  readonly #filters: DiskFilters;
  readonly #parameters: Parameters;
  readonly #pool = new BioPool();
  readonly #copyMemory: Arena;
  readonly #copyMemoryAt: number;
  readonly #served = new Map<string, Served>();
  readonly #access = new Access();
  readonly #exports: Exports;
  readonly #snapshots: IoSnapshots;
  readonly #partitions: PartitionDisks;
  readonly #mapped: MappedDisks;
  readonly #server: NbdServer;
  readonly #ublk: UblkQueues;
  readonly #onKernelLeft: (exportName: string) => void;

  constructor(options: IoServiceOptions) {
    this.#onKernelLeft = options.onKernelLeft;
    const { reactor, parameters, onEvent } = options;
    const { arena } = reactor;
    this.#reactor = reactor;
    this.#filters = options.filters;
    this.#parameters = parameters;
    this.#exports = new Exports(this.#access, options.onExportChange);
    this.#copyMemoryAt = arena.allocate(parameters.copyMemoryBytes);
    assert(this.#copyMemoryAt !== NO_MEMORY, 'the arena has room for copy-on-write');
    const part = { at: this.#copyMemoryAt, length: parameters.copyMemoryBytes };
    this.#copyMemory = new Arena(arena.bytes.buffer, arena.address, part);
    this.#snapshots = new IoSnapshots({
      set: new SnapshotSet({ reactor, pool: this.#pool, parameters, onEvent }),
      pool: this.#pool,
      exports: this.#exports,
      drop: (exportName) => this.#drop(exportName),
      origin: (name) => ({ name, tracker: this.#tracker(name), range: this.#range(name) }),
    });
    this.#partitions = new PartitionDisks({
      reactor,
      pool: this.#pool,
      attachFilter: (disk, filter) => this.#filters.attach(disk, filter),
      offer: (disk, description) => this.#offer(disk, description),
      drop: (name) => this.#drop(name),
      users: (name) => this.#mapped.users(this.#claimOf(name)),
    });
    this.#mapped = new MappedDisks({
      reactor,
      pool: this.#pool,
      find: (name) => this.#find(name),
      servedAs: (file) => [...this.#served].find(([, { tracker }]) => tracker.originPath === file)?.[0],
      tracker: (name) => this.#tracker(name),
      heldOf: (name) => this.#snapshots.heldOf(name),
      persistentOf: (name) => this.#snapshots.persistentOf(name),
      serve: async (name, device, filters) => {
        const closeBase = (): Promise<void> => this.#mapped.forget(name);
        const description = 'mapped device';
        await this.#serve(name, device, { cbtPath: null, originPath: null, description, closeBase, filters });
      },
      withdraw: (name) => this.#close(name),
      protect: () => this.#protect(),
    });
    this.#server = new NbdServer({
      reactor,
      pool: this.#pool,
      exports: this.#exports,
      handOver: options.onHandOver,
      maxConnections: options.parameters.maxConnections,
    });
    this.#ublk = new UblkQueues({ reactor, pool: this.#pool, line: this.#server.line });
  }

  readonly handlers: IoHandlers = {
    listen: (args) => this.#listen(args),
    setAccess: ({ rules }) => {
      this.#access.set(rules);
      return this.#server.dropForbidden();
    },
    attach: (args) => this.#attach(args),
    mount: (args) => this.#mount(args),
    detach: ({ name, force }) => this.#detach(name, force ?? false),
    checkDetach: ({ name, force }) => this.#checkDetach(name, force ?? false),
    doubt: async ({ name, reason }) => this.#tracker(name).doubt(reason),
    disks: async () => [...this.#served.keys()].flatMap((name) => this.#infos(name)),
    rescan: ({ name, filters }) => this.#rescan(name, filters),
    resize: async ({ name }) => {
      await this.#disk(name).resize();
      return this.#info(name);
    },
    filters: async () => this.#filters.list([...this.#served.values()].map(({ disk }) => disk)),
    filterAttach: async ({ disk, ...filter }) => {
      await this.#filters.attach(this.#disk(disk), filter);
      return this.#info(disk);
    },
    filterDetach: ({ disk, name }) => this.#filters.detach(this.#disk(disk), name),
    filterCtl: ({ disk, name, ...ctl }) => this.#filters.ctl(this.#disk(disk), name, ctl),
    dmRestore: (args) => this.#mapped.restore(args),
    dmCreate: (args) => this.#mapped.create(args),
    dmLoad: (args) => this.#mapped.load(args),
    dmSuspend: ({ name }) => this.#mapped.suspend(name),
    dmResume: ({ name }) => this.#mapped.resume(name),
    dmMessage: async ({ name, sector, text }) => this.#mapped.message(name, sector, text),
    dmForget: async ({ name }) => this.#mapped.forgetFailed(name),
    dmRemap: (args) => this.#mapped.remap(args),
    dmUnmap: (args) => this.#mapped.unmap(args),
    dmList: async () => this.#mapped.list(),
    cbtMap: async ({ name, ...part }) => cbtMapPart(this.#tracker(name), this.#range(name), part),
    cbtMarkDirty: async ({ name, ranges }) =>
      this.#tracker(name).markDirty(rangesOnDisk(ranges, name, this.#range(name))),
    createSnapshot: (args) => this.#snapshots.create(args),
    restoreSnapshot: (args) => this.#snapshots.restore(args),
    letGoSnapshot: ({ id }) => this.#snapshots.letGo(id),
    discardSnapshot: ({ journalPath }) => this.#snapshots.discard(journalPath),
    origins: async ({ disks }) => this.#snapshots.originsOf(disks),
    planSnapshot: (args) => this.#snapshots.plan(args),
    freezeSnapshot: ({ id }) => this.#snapshots.freeze(id),
    switchSnapshot: async ({ id }) => this.#snapshots.switch(id),
    finishSnapshot: async ({ id, createdAt }) => this.#snapshots.finish(id, createdAt),
    completeSnapshot: ({ id, heldMs }) => this.#snapshots.complete(id, heldMs),
    abandonSnapshot: ({ id }) => this.#snapshots.abandon(id),
    elsewhere: async (change) => this.#exports.hear(change),
    takeOver: async (client) => this.#takeOver(client),
    serveKernel: async ({ exportName, fd }) => {
      const { ended } = this.#server.serveKernel(fd, exportName);
      void ended.then(() => this.#onKernelLeft(exportName));
      return this.#exports.describe(exportName);
    },
    describeExport: async ({ exportName }) => this.#exports.describe(exportName),
    serveUblk: async ({ exportName, ...shape }) => this.#ublk.serve(this.#exports.get(exportName).device, shape),
    ublkEnded: ({ id }) => this.#ublk.ended(id),
    describeDevice: async ({ exportName }) => servedExport(this.#exports.get(exportName).device),
    guardWritePath: async () => {
      const result = becomeIoFlusher();
      if (result < 0) throw errnoError(-result, 'Cannot tell the kernel that this thread writes for it');
    },
    appendStorage: (args) => this.#snapshots.append(args),
    snapshots: async () => this.#snapshots.list(),
    destroySnapshot: ({ id }) => this.#snapshots.destroy(id),
    stop: () => this.#stop(),
  };

  // --- disks ----------------------------------------------------------------------------------

  async #attach(args: IoCalls['attach']['args']): Promise<DiskInfo> {
    const { path: file, readOnly, direct } = args;
    this.#mapped.checkAttach(args.name);
    const attached = [...this.#served.values()].flatMap(({ tracker }) => tracker.origins);
    refuseSharedOrigin(file, attached);
    const device = await openDevice(file, { reactor: this.#reactor, readOnly, direct });
    return await this.#serve(args.name, device, {
      cbtPath: args.cbtPath,
      originPath: file,
      description: file,
      originPrivate: args.originPrivate ?? false,
      closeBase: async () => {},
      filters: args.filters,
    });
  }

  async #mount(args: IoCalls['mount']['args']): Promise<DiskInfo & { point: string }> {
    const { directory, disk, point } = args;
    const context = { reactor: this.#reactor, pool: this.#pool };
    const opened = await openPoint({ directory, disk, point: point ?? undefined }, context);
    const closeBase = (): Promise<void> => opened.device.close();
    try {
      const storage = openOverlayStorage(args.overlayDirectory, opened.device.size, this.#reactor);
      const parts = { base: opened.device, storage, pool: this.#pool, arena: this.#reactor.arena };
      const device = new OverlayDevice(args.name, parts);
      const description = `restore point ${opened.point.id} of disk ${disk}`;
      const info = await this.#serve(args.name, device, { cbtPath: null, originPath: null, description, closeBase });
      return { ...info, point: opened.point.id };
    } catch (cause) {
      await closeBase();
      throw cause;
    }
  }

  /** Puts a tracker on the device and exports it. Closes it when that fails. */
  async #serve(
    name: string,
    device: BlockDevice,
    options: {
      readonly cbtPath: string | null;
      readonly originPath: string | null;
      readonly originPrivate?: boolean;
      readonly description: string;
      readonly closeBase: () => Promise<void>;
      readonly filters?: readonly KeptFilter[];
    },
  ): Promise<DiskInfo> {
    assert(!this.#served.has(name), 'the control thread gives each name once');
    const disk = new Disk(name, device);
    try {
      const { cbtPath: mapPath, originPath, originPrivate = false } = options;
      const memory = { reactor: this.#reactor, pool: this.#pool, copyMemory: this.#copyMemory };
      const liesOn = (): string[] => this.#mapped.pathsUnder(name);
      const parameters = this.#parameters;
      const tracker = new Tracker({ ...memory, mapPath, originPath, liesOn, originPrivate, parameters });
      await disk.attachFilter(tracker);
      const { filters = [] } = options;
      for (const filter of filters.filter(({ partition }) => partition === null))
        await this.#filters.attach(disk, filter);
      await this.#partitions.scan(disk, filters);
      this.#served.set(name, { disk, tracker, closeBase: options.closeBase });
      this.#offer(disk, options.description);
      return this.#info(name);
    } catch (cause) {
      await this.#partitions.forget(disk);
      await disk.close();
      throw cause;
    }
  }

  async #detach(name: string, force: boolean): Promise<void> {
    await this.#checkDetach(name, force);
    await this.#close(name);
  }

  async #checkDetach(name: string, force: boolean): Promise<void> {
    this.#get(name);
    const held = this.#snapshots.heldOf(name);
    if (held.length > 0) {
      throw new BlksnapError(
        'EBUSY',
        `Cannot detach disk "${name}": snapshot ${held.join(', ')} is held; destroy it first`,
      );
    }
    this.#mapped.checkClose(name);
    if (!force) await this.#checkUnused(name);
  }

  /** A client that has just ended is given a moment to go. Errors: EBUSY while one is connected to the disk or to a
   *  partition of it: what it has not written yet would be lost. */
  async #checkUnused(name: string): Promise<void> {
    const clients = (): number => this.#server.clientsOf((exportName) => wholeDisk(exportName) === name);
    const untilMs = this.#reactor.now() + CLIENT_LEAVES_MS;
    while (clients() > 0 && this.#reactor.now() < untilMs) {
      await completed((c) => void this.#reactor.timer(CLIENT_LEAVES_MS / 10, c));
    }
    const left = clients();
    if (left === 0) return;
    throw new BlksnapError(
      'EBUSY',
      `Cannot detach disk "${name}": ${left === 1 ? 'a client is' : `${left} clients are`} connected to it; ` +
        'end that first, or cut it off with --force',
    );
  }

  async #close(name: string): Promise<void> {
    const served = this.#served.get(name);
    if (served === undefined) return;
    await this.#partitions.forget(served.disk);
    await this.#drop(name);
    this.#served.delete(name);
    await served.disk.close();
    await served.closeBase();
  }

  #claimOf(name: string): Claim {
    const { disk } = this.#get(name);
    const { offset, length } = this.#range(name) ?? { offset: 0, length: disk.size };
    return { root: `disk ${disk.name}`, offset, length };
  }

  /** What a mapped device lies on is written through it alone: its clients get it read-only. */
  async #protect(): Promise<void> {
    for (const [exportName, offered] of this.#exports) {
      if (!this.#served.has(wholeDisk(exportName)) || exportName.includes('@')) continue;
      const disk = this.#disk(exportName);
      const claimed = this.#mapped.users(this.#claimOf(exportName)).length > 0;
      if (claimed === (offered.device !== disk)) continue;
      await this.#drop(exportName);
      const whole = { offset: 0, length: disk.size, pool: this.#pool, readOnly: true };
      const device = claimed ? new RangeDevice(exportName, disk, whole) : disk;
      this.#exports.set(exportName, { ...offered, device });
      this.#ublk.redirect(offered.device, device);
    }
  }

  async #rescan(name: string, filters: readonly KeptFilter[]): Promise<DiskInfo[]> {
    await this.#partitions.scan(this.#get(name).disk, filters);
    return this.#infos(name);
  }

  #offer(disk: Disk, description: string): void {
    this.#exports.set(disk.name, { name: disk.name, description, device: disk, contexts: () => [] });
  }

  /** Ends an export and the connections that use it. */
  async #drop(exportName: string): Promise<void> {
    const served = this.#exports.find(exportName);
    if (served === undefined) return;
    this.#exports.delete(exportName);
    await this.#server.dropExport(served);
  }

  /** Of a partition, what its disk has. */
  #get(name: string): Served {
    const served = this.#served.get(wholeDisk(name));
    if (served === undefined && this.#exports.isElsewhere(name)) {
      throw new BlksnapError(
        'EBUSY',
        `Cannot use disk "${name}" here: it lives on another I/O thread than mapped devices; ` +
          'detach it and attach it with --mappable, or start the daemon with --io-threads 1',
      );
    }
    if (served === undefined)
      throw new BlksnapError('ENODEV', `Disk "${name}" is not served; \`blksnap status\` tells why`);
    return served;
  }

  /** For tables, whose names nobody has looked at before. Errors: ENOENT, EBUSY. */
  #find(name: string): { disk: Disk; offset: number } {
    if (!this.#served.has(wholeDisk(name)) && !this.#exports.isElsewhere(name))
      throw new BlksnapError('ENOENT', `No disk "${name}" is served; \`blksnap list\` shows those that are`);
    return { disk: this.#disk(name), offset: this.#range(name)?.offset ?? 0 };
  }

  /** The partition of that name; null for a whole disk. Errors: ENOENT. */
  #partition(name: string): PartitionDisk | null {
    const { disk } = this.#get(name);
    if (disk.name === name) return null;
    const found = this.#partitions.get(name);
    if (found !== undefined) return found;
    const known = this.#partitions.of(disk).map((one) => one.disk.name);
    const there =
      known.length === 0 ? 'its disk has none; `blksnap rescan` looks again' : `there are ${known.join(', ')}`;
    throw new BlksnapError('ENOENT', `No partition "${name}": ${there}`);
  }

  #disk(name: string): Disk {
    return this.#partition(name)?.disk ?? this.#get(name).disk;
  }

  #info(name: string): DiskInfo {
    const served = this.#get(name);
    const partition = this.#partition(name);
    return partition === null
      ? diskInfo(served, this.#partitions.table(served.disk))
      : partitionInfo(served, partition);
  }

  /** A disk and its partitions. */
  #infos(name: string): DiskInfo[] {
    const partitions = this.#partitions.of(this.#get(name).disk).map(({ disk }) => disk.name);
    return [name, ...partitions].map((one) => this.#info(one));
  }

  #tracker(name: string): Tracker {
    return this.#get(name).tracker;
  }

  /** Of a partition on its disk; null for a whole disk. */
  #range(name: string): DeviceRange | null {
    return this.#partition(name)?.partition ?? null;
  }

  // --- clients --------------------------------------------------------------------------------

  async #listen({ address, clients }: IoCalls['listen']['args']): Promise<SocketAddress> {
    switch (clients) {
      case 'owner':
        return (await this.#server.listen(address)).address;
      case 'nameless':
        return (await this.#server.listen(address, { peer: () => NAMELESS })).address;
      case 'users':
        // Whoever can reach the socket's directory may connect, and sees what was allowed to its user id.
        return (await this.#server.listen(address, { mode: 0o666, peer: (stream) => userPeer(stream.peerUid()) }))
          .address;
    }
  }

  #takeOver(client: Visitor): void {
    try {
      void this.#server.takeOver(client);
    } catch {
      // No memory for one more client: as at an accept, it is sent away.
      fs.closeSync(client.fd);
    }
  }

  // --- end ------------------------------------------------------------------------------------

  /** Ends everything that can be ended, also when something cannot. Errors: the first that came up. */
  async #stop(): Promise<void> {
    const failures: unknown[] = [];
    const attempt = (step: () => Promise<void>): Promise<unknown> =>
      step().catch((cause: unknown) => failures.push(cause));
    // Bios that a suspended device holds would keep their connections for ever.
    this.#mapped.abandon();
    await attempt(() => this.#ublk.leave());
    await attempt(() => this.#server.close());
    this.#exports.clear();
    await attempt(() => this.#snapshots.close());
    for (const { disk, closeBase } of this.#served.values()) {
      await attempt(() => disk.close());
      await attempt(closeBase);
    }
    this.#served.clear();
    this.#reactor.arena.release(this.#copyMemoryAt);
    if (failures.length > 0) throw toBlksnapError(failures[0], 'Not everything could be closed');
  }
}
