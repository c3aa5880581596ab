/** The world of a run: the product's own disks, trackers, snapshots and images over a simulated machine, and beside
 *  each the plain model of what it must show. One world is one life of the daemon; files and models outlive it. */

import fs from 'node:fs';
import path from 'node:path';
import { Arena, NO_MEMORY } from '../../src/io/arena.ts';
import { SLAB_BYTES } from '../../src/io/slab-pool.ts';
import { BioPool } from '../../src/block/bio.ts';
import { pushExtent } from '../../src/block/device.ts';
import type { Extent } from '../../src/block/device.ts';
import { DescriptorDevice } from '../../src/block/descriptor-device.ts';
import { Disk } from '../../src/block/disk.ts';
import { DEFAULT_PARAMETERS } from '../../src/blksnap/parameters.ts';
import type { SnapshotImage } from '../../src/blksnap/image.ts';
import type { Snapshot } from '../../src/blksnap/snapshot.ts';
import { SnapshotSet } from '../../src/blksnap/snapshot-set.ts';
import { Tracker } from '../../src/blksnap/tracker.ts';
import type { Prng } from '../../src/util/prng.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { DiskModel } from './disk-model.ts';
import { macrotask } from './clock.ts';
import type { SimClock } from './clock.ts';
import { SimReactor } from './reactor.ts';
import { Serving } from './serving.ts';
import type { SimClient } from './client.ts';
import { VICTIM, VICTIM_BYTES } from './hostile.ts';
import { Depot } from './depot.ts';
import { VirtualFile } from './virtual-file.ts';
import { letGo, restoreAll } from './persistent.ts';
import type { Kept } from './persistent.ts';
import type { Weather } from './weather.ts';

const SECTOR = 512;
/** In a change map's file. */
const BOOT_ID_AT = 72;
const ARENA_BYTES = 16 * MIB;
/** What storages in memory may use without a copy; the next ones have none left. */
const SLABS = 3;
/** Sizes that are no whole chunks and no whole tracking blocks. */
const SIZES = [256 * KIB + 3 * SECTOR, 136 * KIB + SECTOR];

/** What remains of a snapshot's image for whoever has made a backup of it. */
export interface Past {
  readonly generationId: string;
  readonly changeNumber: number;
  readonly content: Uint8Array;
}

export interface SimDisk {
  readonly model: DiskModel;
  readonly file: VirtualFile;
  readonly disk: Disk;
  readonly tracker: Tracker;
  /** Syncs of the file that had failed when it was opened. */
  readonly syncFaults: number;
}

export interface SimImage extends Past {
  readonly image: SnapshotImage;
  readonly owner: SimDisk;
  /** Chunks that a reader was done with: they read right, or not at all. */
  readonly released: Set<number>;
  /** Writes under way, or that failed: each byte is old or new. */
  readonly uncertain: Set<{ readonly offset: number; readonly data: Uint8Array }>;
  /** Readers that want it as it is now. */
  busy: number;
}

/** The machine's disks, and what is known of each. */
export interface Machine {
  readonly clock: SimClock;
  readonly weather: Weather;
  /** Of the change maps. */
  readonly directory: string;
  readonly depot: Depot;
  readonly disks: ReadonlyArray<{
    readonly model: DiskModel;
    readonly file: VirtualFile;
    readonly past: Past[];
    readonly proxy: string;
  }>;
  /** Persistent snapshots, in the order of their takes. */
  readonly persistent: Kept[];
  /** Disks that somebody else has written to since the last daemon ended. */
  readonly foreign: Set<string>;
  /** A time for each thing that begins or ends: what ended before another began has a lower one. */
  tick(): number;
}

export function newMachine(clock: SimClock, weather: Weather, directory: string): Machine {
  const disks = SIZES.map((size, i) => {
    const content = new Uint8Array(size);
    // The second half is a hole.
    clock.random.fill(content.subarray(0, Math.floor(size / 2 / SECTOR) * SECTOR));
    const file = new VirtualFile({ name: `disk${i}`, size, kept: true });
    file.write(0, content.subarray(0, Math.floor(size / 2 / SECTOR) * SECTOR));
    file.sync();
    file.capacityPages = file.pages + weather.originSparePages;
    const proxy = path.join(directory, `${file.name}.origin`);
    fs.writeFileSync(proxy, '');
    return { model: new DiskModel(`disk${i}`, content), file, past: [], proxy };
  });
  let ticks = 0;
  return {
    clock,
    weather,
    directory,
    depot: new Depot(directory),
    disks,
    persistent: [],
    foreign: new Set(),
    tick: () => ++ticks,
  };
}

/** The product's device on a descriptor, which knows from the file where its holes are. */
class VirtualDisk extends DescriptorDevice {
  override readonly holes: VirtualFile;

  constructor(reactor: SimReactor, file: VirtualFile) {
    super(reactor, {
      name: file.name,
      fd: reactor.openFile(file),
      sizeNow: () => file.size,
      logicalBlockSize: SECTOR,
      physicalBlockSize: 4096,
      readOnly: false,
      memoryAlignment: 1,
      kind: 'file',
      cached: 'writes',
      capabilities: { flush: true, fua: true, discard: true, writeZeroes: true, fastZero: true, rotational: false },
    });
    this.holes = file;
  }

  override async extents(offset: number, length: number): Promise<Extent[]> {
    const found: Extent[] = [];
    const end = offset + length;
    for (let at = offset; at < end;) {
      const data = this.holes.dataFrom(at, end);
      if (data > at) pushExtent(found, data - at, true, true);
      const hole = this.holes.dataUntil(data, end);
      if (hole > data) pushExtent(found, hole - data, false, false);
      at = hole;
    }
    return found;
  }
}

export class World {
  readonly machine: Machine;
  readonly reactor: SimReactor;
  readonly pool = new BioPool();
  readonly set: SnapshotSet;
  readonly disks: SimDisk[] = [];
  readonly held = new Map<Snapshot, SimImage[]>();
  /** Those of them that are persistent. */
  readonly kept = new Map<Snapshot, Kept>();
  readonly serving: Serving;
  readonly clients: SimClient[] = [];
  /** Processes that back up, restore or prune. */
  readonly workers = new Set<SimClient>();
  dead = false;
  /** Of the newest storages. */
  readonly places: VirtualFile[] = [];
  readonly copyMemory: Arena;
  readonly #copyAt: number;
  /** What hostile clients may do everything to. */
  readonly #victim: VirtualDisk;
  /** Resolves when the daemon dies. */
  readonly whenDead: Promise<void>;
  #tellDead!: () => void;

  /** `excuse`: why persistent snapshots may not come back. */
  static async start(machine: Machine, excuse = ''): Promise<World> {
    const world = new World(machine);
    for (const each of machine.disks) await world.#open(each);
    await restoreAll(world, excuse);
    machine.foreign.clear();
    return world;
  }

  private constructor(machine: Machine) {
    const { clock, weather } = machine;
    this.machine = machine;
    this.reactor = new SimReactor({ clock, weather, arenaBytes: ARENA_BYTES, slabBytes: SLABS * SLAB_BYTES });
    const { arena } = this.reactor;
    const length = weather.copyMemoryBytes;
    this.#copyAt = arena.allocate(length);
    this.copyMemory = new Arena(arena.bytes.buffer, 0, { at: this.#copyAt, length });
    const parameters = { ...DEFAULT_PARAMETERS, cowTimeoutMs: weather.cowTimeoutMs };
    this.set = new SnapshotSet({ reactor: this.reactor, pool: this.pool, parameters });
    this.whenDead = new Promise((resolve) => (this.#tellDead = resolve));
    this.serving = new Serving(this.reactor, this.pool);
    const victim = new VirtualFile({ name: VICTIM, size: VICTIM_BYTES });
    this.#victim = new VirtualDisk(this.reactor, victim);
    this.serving.offer(this.#victim);
  }

  async #open({ model, file, proxy }: Machine['disks'][number]): Promise<void> {
    const { reactor, pool, copyMemory, machine } = this;
    const { weather } = machine;
    const device = new VirtualDisk(reactor, file);
    const disk = new Disk(file.name, device);
    const mapPath = weather.mapInFile ? path.join(machine.directory, `${file.name}.map`) : null;
    const parameters = {
      ...DEFAULT_PARAMETERS,
      cowTimeoutMs: weather.cowTimeoutMs,
      copyUnitBytes: weather.copyUnitBytes,
      trackingBlockMinShift: 12,
      trackingBlockMaxShift: 14,
      trackingBlockMaxCount: 40,
    };
    const tracker = new Tracker({ reactor, pool, copyMemory, mapPath, originPath: proxy, parameters });
    await reactor.until(disk.attachFilter(tracker));
    this.disks.push({ model, file, disk, tracker, syncFaults: file.faults.sync });
    this.serving.offer(disk);
  }

  /** The machine that reads the map has another boot id. */
  #otherBoot(name: string): void {
    const fd = fs.openSync(path.join(this.machine.directory, `${name}.map`), 'r+');
    fs.writeSync(fd, 'another-boot', BOOT_ID_AT);
    fs.closeSync(fd);
  }

  /** Somebody else writes to a disk while no daemon runs. */
  writeForeign(random: Prng): void {
    for (const { model, file, proxy } of this.machine.disks) {
      if (random.chance(0.7)) continue;
      const data = new Uint8Array(SECTOR);
      random.fill(data.subarray(0));
      const offset = random.below(Math.floor(file.size / SECTOR)) * SECTOR;
      if (file.write(offset, data) < SECTOR) continue;
      // All of it is on the platter then, also what a sync that failed had dropped.
      file.resize(file.size);
      model.restart(contentOf(file));
      this.machine.foreign.add(file.name);
      // The times of a file tell of it.
      const time = Date.now() / 1000 + 600 + random.below(600);
      fs.utimesSync(proxy, time, time);
    }
  }

  get images(): SimImage[] {
    return [...this.held.values()].flat();
  }

  past(owner: SimDisk): Past[] {
    return this.machine.disks.find(({ model }) => model === owner.model)!.past;
  }

  /** Takes nearly all of the arena, for others to do without. Returns how to give it back. */
  hog(): () => void {
    const { arena } = this.reactor;
    const places: number[] = [];
    for (let at = arena.allocate(256 * KIB); at !== NO_MEMORY; at = arena.allocate(256 * KIB)) places.push(at);
    for (let at = arena.allocate(4 * KIB); at !== NO_MEMORY; at = arena.allocate(4 * KIB)) places.push(at);
    return () => {
      for (const at of places) arena.release(at);
    };
  }

  /** Lets a snapshot go. Its images are remembered, as a backup of them would be. */
  async destroy(snapshot: Snapshot): Promise<void> {
    for (const image of this.held.get(snapshot) ?? []) remember(this.past(image.owner), image);
    this.held.delete(snapshot);
    const kept = this.kept.get(snapshot);
    if (kept !== undefined) kept.going = true;
    for (const image of snapshot.images) await this.serving.withdrawImage(image);
    await this.set.destroy(snapshot.id);
    this.kept.delete(snapshot);
  }

  /** All snapshots and disks are closed in order; nothing may be left. */
  async stop(): Promise<void> {
    this.reactor.clock.calm++;
    for (const client of this.clients) if (!client.vanished) await this.reactor.until(client.close());
    await this.reactor.until(this.serving.server.close());
    await this.reactor.until(this.#victim.close());
    await this.reactor.until(this.set.close());
    for (const { disk } of this.disks) await this.reactor.until(disk.close());
    await this.reactor.settle();
    if (this.pool.lent !== 0) throw new Error(`leak: ${this.pool.lent} bios were not given back`);
    if (this.copyMemory.lentBytes !== 0) throw new Error(`leak: ${this.copyMemory.lentBytes} bytes of copy memory`);
    this.reactor.arena.release(this.#copyAt);
    const { lentBytes } = this.reactor.arena;
    if (lentBytes !== 0) throw new Error(`leak: ${lentBytes} bytes of the arena`);
    const slabBytes = this.reactor.slabs.lentBytes;
    if (slabBytes !== 0) throw new Error(`leak: ${slabBytes} bytes of slabs`);
    await this.reactor.close();
    this.reactor.clock.calm--;
    for (const { model, file } of this.disks) model.reopened(contentOf(file));
  }

  /** The daemon is killed, or with `power` the machine stops. The files are then as the model may know them. */
  async die(power: boolean): Promise<void> {
    const { reactor } = this;
    reactor.die();
    this.dead = true;
    this.#tellDead();
    if (power) {
      for (const worker of this.workers) worker.vanish();
      this.machine.depot.losePower(reactor.random);
    }
    // What has heard of its end may still go on to its next wait, with the maps in its hands.
    await macrotask();
    for (const snapshot of this.held.keys()) letGo(snapshot);
    for (const { model, file, tracker, syncFaults } of this.disks) {
      // The kernel lets go of what a killed process had mapped; without a clean mark.
      tracker.cbt.close(false);
      model.deafen();
      const { past } = this.machine.disks.find((each) => each.model === model)!;
      for (const image of this.images) if (image.owner.model === model) remember(past, image);
      if (power && this.machine.weather.mapInFile) this.#otherBoot(file.name);
      if (power) file.losePower(reactor.random);
      const actual = contentOf(file);
      // Nobody may have heard of a sync that failed; what it dropped is in the page cache alone.
      if (file.faults.sync > syncFaults) model.unreliableSince = Math.min(model.unreliableSince, this.machine.tick());
      if (power) model.lostPower(actual);
      else model.reopened(actual);
    }
    if (power) for (const kept of this.machine.persistent) losePower(kept, reactor.random);
  }

  /** The machine stops after the daemon has ended in order. */
  losePower(random: Prng): void {
    for (const { model, file } of this.machine.disks) {
      if (this.machine.weather.mapInFile) this.#otherBoot(file.name);
      file.losePower(random);
      model.lostPower(contentOf(file));
    }
    for (const kept of this.machine.persistent) losePower(kept, random);
  }
}

function losePower({ journal, places }: Kept, random: Prng): void {
  for (const file of [journal, ...places.values()]) file.losePower(random);
}

function contentOf(file: VirtualFile): Uint8Array {
  const content = new Uint8Array(file.size);
  file.read(0, content);
  return content;
}

const REMEMBERED = 4;

function remember(past: Past[], { generationId, changeNumber, content, uncertain }: SimImage): void {
  if (uncertain.size > 0) return;
  past.push({ generationId, changeNumber, content: content.slice() });
  if (past.length > REMEMBERED) past.shift();
}
