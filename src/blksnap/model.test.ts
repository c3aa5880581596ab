/** The core against a plain model: random writes, discards, snapshots and image writes on two disks,
 *  many under way at once, compared with arrays and frozen copies after every step.
 *
 *  Seeded: a failure prints its seed; BLKSNAP_SEED=n repeats it, BLKSNAP_STEPS=n makes it longer. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Arena } from '../io/arena.ts';
import { openReactor } from '../io/open.ts';
import type { DriverName } from '../io/open.ts';
import type { Reactor } from '../io/reactor.ts';
import { BioPool, DISCARD, READ, WRITE, WRITE_ZEROES, runBio } from '../block/bio.ts';
import type { Bio, BioSink, Op } from '../block/bio.ts';
import { Disk } from '../block/disk.ts';
import type { BlockDevice, Capabilities, Extent, HoleFinder } from '../block/device.ts';
import { openDevice } from '../block/open.ts';
import { ERRNO } from '../util/errors.ts';
import { Prng } from '../util/prng.ts';
import { CHUNK } from './chunk-table.ts';
import { MIB } from '../util/units.ts';
import { DEFAULT_PARAMETERS } from './parameters.ts';
import { SnapshotSet } from './snapshot-set.ts';
import type { Snapshot } from './snapshot.ts';
import type { SnapshotImage } from './image.ts';
import { Tracker } from './tracker.ts';

const SECTOR = 512;
/** Far too little, so that writes wait for memory all the time. */
const COPY_MEMORY = 64 * 1024;
const SEEDS = process.env['BLKSNAP_SEED'] === undefined ? [1, 2, 3, 4] : [Number(process.env['BLKSNAP_SEED'])];
const STEPS = Number(process.env['BLKSNAP_STEPS'] ?? 60);
/** By seed: units of a chunk, of several, of all the copy memory, and larger than a disk. */
const COPY_UNITS = [4, 16, 64, 256].map((kib) => kib * 1024);
/** Sizes that are no whole chunks and no whole tracking blocks. */
const SIZES = [512 * 1024 + 3 * SECTOR, 200 * 1024 + SECTOR];

/** A slow disk that serves what is under way in any order, as disks may. Tells its holes as a file does. */
class Shuffle implements BlockDevice {
  /** As many of the next reads, and changes, fail. */
  failReads = 0;
  failChanges = 0;
  readonly #device: BlockDevice;
  readonly #random: Prng;
  readonly #reactor: Reactor;

  constructor(device: BlockDevice, random: Prng, reactor: Reactor) {
    this.#device = device;
    this.#random = random;
    this.#reactor = reactor;
  }

  get name(): string {
    return this.#device.name;
  }
  get size(): number {
    return this.#device.size;
  }
  get logicalBlockSize(): number {
    return this.#device.logicalBlockSize;
  }
  get physicalBlockSize(): number {
    return this.#device.physicalBlockSize;
  }
  get readOnly(): boolean {
    return this.#device.readOnly;
  }
  get capabilities(): Capabilities {
    return this.#device.capabilities;
  }
  refreshSize(): number {
    return this.#device.refreshSize!();
  }
  get holes(): HoleFinder | undefined {
    return this.#device.holes;
  }

  submit(bio: Bio): void {
    const fails = bio.op === READ ? this.failReads > 0 : this.failChanges > 0;
    if (fails && bio.op === READ) this.failReads--;
    else if (fails) this.failChanges--;
    if (fails) this.#reactor.timer(this.#random.below(3), { complete: () => bio.end(ERRNO.EIO) });
    else if (this.#random.chance(0.5)) this.#device.submit(bio);
    else this.#reactor.timer(this.#random.below(3), { complete: () => this.#device.submit(bio) });
  }

  extents(offset: number, length: number): Promise<Extent[]> {
    return this.#device.extents(offset, length);
  }

  close(): Promise<void> {
    return this.#device.close();
  }
}

interface ModelDisk {
  readonly disk: Disk;
  readonly device: Shuffle;
  readonly tracker: Tracker;
  readonly file: string;
  content: Uint8Array;
}

interface ModelImage {
  readonly image: SnapshotImage;
  readonly owner: ModelDisk;
  readonly content: Uint8Array;
  /** Chunks that a reader was done with: they read right, or not at all. */
  readonly released: Set<number>;
  /** Its storage is far too small: it may be lost at any moment, and nobody writes to it. */
  readonly tight: boolean;
}

interface Range {
  readonly offset: number;
  readonly length: number;
}

class World {
  readonly random: Prng;
  readonly reactor: Reactor;
  readonly pool = new BioPool();
  readonly set: SnapshotSet;
  readonly disks: ModelDisk[] = [];
  readonly held = new Map<Snapshot, ModelImage[]>();
  readonly #directory: string;
  readonly #copyMemory: Arena;
  readonly #copyAt: number;
  readonly #copyUnitBytes: number;

  constructor(reactor: Reactor, seed: number, directory: string) {
    this.random = new Prng(seed);
    this.#copyUnitBytes = COPY_UNITS[(seed - 1) % COPY_UNITS.length]!;
    this.reactor = reactor;
    this.#directory = directory;
    this.set = new SnapshotSet({ reactor, pool: this.pool });
    const { arena } = reactor;
    this.#copyAt = arena.allocate(COPY_MEMORY);
    this.#copyMemory = new Arena(arena.bytes.buffer, arena.address, { at: this.#copyAt, length: COPY_MEMORY });
  }

  async open(): Promise<void> {
    for (const [i, size] of SIZES.entries()) {
      const file = path.join(this.#directory, `disk${i}`);
      const content = new Uint8Array(size);
      this.random.fill(content.subarray(0, size / 2));
      // The second half is a hole.
      fs.writeFileSync(file, content.subarray(0, size / 2));
      fs.truncateSync(file, size);
      const device = await openDevice(file, { reactor: this.reactor });
      const shuffle = new Shuffle(device, this.random, this.reactor);
      const disk = new Disk(`disk${i}`, shuffle);
      const tracker = new Tracker({
        reactor: this.reactor,
        pool: this.pool,
        copyMemory: this.#copyMemory,
        mapPath: path.join(this.#directory, `disk${i}.map`),
        originPath: file,
        parameters: { ...DEFAULT_PARAMETERS, copyUnitBytes: this.#copyUnitBytes },
      });
      await disk.attachFilter(tracker);
      this.disks.push({ disk, device: shuffle, tracker, file, content });
    }
  }

  async close(): Promise<void> {
    const { counters } = this.disks[0]!.tracker.cow;
    expect(counters.heldWrites).toBeGreaterThan(0);
    expect(counters.memoryWaits).toBeGreaterThan(0);
    expect(counters.holeChunks).toBeGreaterThan(0);
    await this.set.close();
    for (const { disk } of this.disks) await disk.close();
    expect(this.pool.lent).toBe(0);
    expect(this.#copyMemory.lentBytes).toBe(0);
    this.reactor.arena.release(this.#copyAt);
    expect(this.reactor.arena.lentBytes).toBe(0);
    expect(this.reactor.slabs.lentBytes).toBe(0);
    await this.reactor.close();
  }

  range(size: number): Range {
    const sectors = size / SECTOR;
    const offset = this.random.below(sectors);
    const most = this.random.chance(0.1) ? 400 : this.random.chance(0.5) ? 8 : 24;
    return { offset: offset * SECTOR, length: (1 + this.random.below(Math.min(most, sectors - offset))) * SECTOR };
  }

  /** Writes, discards or zeroes the range; updates the model when it is started. */
  async change(sink: BioSink, content: Uint8Array, { offset, length }: Range): Promise<void> {
    const op: Op = this.random.chance(0.75) ? WRITE : this.random.chance(0.5) ? DISCARD : WRITE_ZEROES;
    const { arena } = this.reactor;
    const target = content.subarray(offset, offset + length);
    if (op === WRITE && !this.random.chance(0.1)) this.random.fill(target);
    else target.fill(0);
    const at = op === WRITE ? arena.allocate(length) : 0;
    expect(at).toBeGreaterThanOrEqual(0);
    if (op === WRITE) arena.bytes.set(target, at);
    const status = await runBio(this.pool, sink, { op, offset, length, at });
    if (op === WRITE) arena.release(at);
    expect(status).toBe(0);
  }

  async read(sink: BioSink, { offset, length }: Range): Promise<Uint8Array> {
    const { arena } = this.reactor;
    const at = arena.allocate(length);
    expect(at).toBeGreaterThanOrEqual(0);
    const status = await runBio(this.pool, sink, { op: READ, offset, length, at });
    const result = arena.bytes.slice(at, at + length);
    arena.release(at);
    expect(status).toBe(0);
    return result;
  }

  async expectContent(what: string, sink: BioSink, content: Uint8Array, range: Range): Promise<void> {
    const got = await this.read(sink, range);
    const want = content.slice(range.offset, range.offset + range.length);
    if (Buffer.compare(got, want) === 0) return;
    const at = got.findIndex((byte, i) => byte !== want[i]);
    expect.fail(`${what} differs at ${range.offset + at} (range ${range.offset}+${range.length})`);
  }

  /** Many operations at once: changes of ranges that do not overlap, and reads of frozen images. */
  async burst(): Promise<void> {
    const running: Array<Promise<void>> = [];
    const taken = new Map<object, Range[]>();
    const images = [...this.held.values()].flat();
    for (let i = 0; i < 24; i++) {
      const model = this.disks[this.random.below(this.disks.length)]!;
      const range = this.range(model.content.length);
      const busy = taken.get(model) ?? [];
      if (busy.some((other) => overlap(other, range))) continue;
      taken.set(model, [...busy, range]);
      running.push(this.change(model.disk, model.content, range));
      const image = images[this.random.below(Math.max(1, images.length))];
      if (image === undefined) continue;
      const seen = this.range(image.content.length);
      const written = taken.get(image) ?? [];
      if (releasedIn(image, seen)) continue;
      if (image.tight) {
        running.push(this.expectContentOrLost(image, seen));
        continue;
      }
      if (this.random.chance(0.15) && !written.some((other) => overlap(other, seen))) {
        taken.set(image, [...written, seen]);
        running.push(this.change(image.image, image.content, seen));
      } else if (!written.some((other) => overlap(other, seen))) {
        // Later writes of this burst to the same place of the image would make the answer ambiguous.
        taken.set(image, [...written, seen]);
        running.push(this.expectContent(image.image.name, image.image, image.content, seen));
      }
    }
    await Promise.all(running);
    this.forgetLost(({ tight }) => tight);
  }

  /** Images that were lost are looked at no more; only those that could be may. */
  forgetLost(couldBe: (image: ModelImage) => boolean): void {
    for (const [snapshot, images] of this.held) {
      const lost = images.filter(({ image }) => image.corrupted !== 0);
      for (const image of lost) expect(couldBe(image), `${image.image.name} is lost`).toBe(true);
      this.held.set(
        snapshot,
        images.filter((image) => !lost.includes(image)),
      );
    }
  }

  async expectContentOrLost({ image, content }: ModelImage, { offset, length }: Range): Promise<void> {
    const { arena } = this.reactor;
    const at = arena.allocate(length);
    const status = await runBio(this.pool, image, { op: READ, offset, length, at });
    const got = Buffer.from(arena.bytes.slice(at, at + length));
    arena.release(at);
    if (status === 0) expect(got.equals(content.subarray(offset, offset + length)), `${image.name} differs`).toBe(true);
    else expect([status, image.corrupted]).toEqual([ERRNO.EIO, ERRNO.ENOSPC]);
  }

  /** One read below the tracker fails while a write asks for it: that costs the newest image at most. */
  async failRead(): Promise<void> {
    const model = this.disks[this.random.below(this.disks.length)]!;
    const images = [...this.held.values()].flat().filter(({ owner }) => owner === model);
    model.device.failReads = 1;
    await this.change(model.disk, model.content, this.range(model.content.length));
    model.device.failReads = 0;
    this.forgetLost((image) => image === images.at(-1) || image.tight);
  }

  /** A write fails: the disk is as before, and so are its images. */
  async failChange(): Promise<void> {
    const model = this.disks[this.random.below(this.disks.length)]!;
    const { offset, length } = this.range(model.content.length);
    const at = this.reactor.arena.allocate(length);
    this.random.fill(this.reactor.arena.bytes.subarray(at, at + length));
    model.device.failChanges = 1;
    expect(await runBio(this.pool, model.disk, { op: WRITE, offset, length, at })).toBe(ERRNO.EIO);
    this.reactor.arena.release(at);
    this.forgetLost(({ tight }) => tight);
  }

  /** A take with writes on their way: each of them is in the image whole sector by whole sector, or not at all. */
  async take(): Promise<void> {
    const chosen = this.disks.filter(() => this.random.chance(0.6));
    if (chosen.length === 0) chosen.push(this.disks[0]!);
    const before = chosen.map(({ content }) => content.slice());
    const writes: Array<Promise<void>> = [];
    for (const { disk, content } of chosen) {
      const done: Range[] = [];
      for (let i = 0; i < 4; i++) {
        const range = this.range(content.length);
        if (done.some((other) => overlap(other, range))) continue;
        done.push(range);
        writes.push(this.change(disk, content, range));
      }
    }
    const storagePath = this.random.chance(0.5) ? ':memory:' : this.#directory;
    const tight = this.random.chance(0.25);
    const snapshot = await this.set.create(
      chosen.map(({ tracker }) => tracker),
      { path: storagePath, limitBytes: tight ? 16 * CHUNK : 64 * MIB },
    );
    await Promise.all(writes);
    this.forgetLost((image) => image.tight);
    const images: ModelImage[] = [];
    for (const [i, owner] of chosen.entries()) {
      const image = snapshot.images[i]!;
      if (image.corrupted !== 0) {
        expect([tight, image.corrupted]).toEqual([true, ERRNO.ENOSPC]);
        continue;
      }
      const content = await this.read(image, { offset: 0, length: owner.content.length });
      for (let at = 0; at < content.length; at += SECTOR) {
        const sector = Buffer.from(content.subarray(at, at + SECTOR));
        const old = sector.equals(before[i]!.subarray(at, at + SECTOR));
        const fresh = sector.equals(owner.content.subarray(at, at + SECTOR));
        expect(old || fresh, `${image.name}: sector at ${at} is neither old nor new`).toBe(true);
      }
      images.push({ image, owner, content, released: new Set(), tight });
    }
    this.held.set(snapshot, images);
  }

  /** A reader is done with some of an image. */
  release(): void {
    const images = [...this.held.values()].flat();
    const model = images[this.random.below(Math.max(1, images.length))];
    if (model === undefined) return;
    const first = this.random.below(Math.ceil(model.content.length / CHUNK));
    const end = first + 1 + this.random.below(40);
    model.image.release(first * CHUNK, Math.min(end * CHUNK, model.content.length) - first * CHUNK);
    for (let chunk = first; chunk < end && chunk * CHUNK < model.content.length; chunk++) model.released.add(chunk);
  }

  async expectRightOrNothing(image: SnapshotImage, content: Uint8Array, offset: number): Promise<void> {
    const want = content.subarray(offset, offset + CHUNK);
    const { arena } = this.reactor;
    const at = arena.allocate(CHUNK);
    const status = await runBio(this.pool, image, { op: READ, offset, length: want.length, at });
    const got = Buffer.from(arena.bytes.slice(at, at + want.length));
    arena.release(at);
    if (status === 0) expect(got.equals(want), `${image.name}: released chunk at ${offset} is wrong`).toBe(true);
    else expect(status).toBe(ERRNO.EIO);
  }

  /** Cuts or extends a disk. Only images that are larger than what is left may be lost. */
  async resize(): Promise<void> {
    const model = this.disks[this.random.below(this.disks.length)]!;
    const sectors = model.content.length / SECTOR;
    const size = Math.max(64, Math.floor(sectors * (0.7 + this.random.below(70) / 100))) * SECTOR;
    const content = new Uint8Array(size);
    content.set(model.content.subarray(0, size));
    model.content = content;
    fs.truncateSync(model.file, size);
    const generation = model.tracker.cbt.generationId;
    expect(await model.disk.resize()).toBe(size);
    if (size !== sectors * SECTOR) expect(model.tracker.cbt.generationId).not.toBe(generation);
    for (const [snapshot, images] of this.held) {
      const isLost = ({ image, owner }: ModelImage): boolean =>
        owner === model && image.size > size && image.corrupted !== 0;
      this.held.set(
        snapshot,
        images.filter((image) => !isLost(image)),
      );
    }
  }

  async destroy(): Promise<void> {
    const all = [...this.held.keys()];
    const snapshot = all[this.random.below(all.length)];
    if (snapshot === undefined) return;
    this.held.delete(snapshot);
    await this.set.destroy(snapshot.id);
  }

  /** Everything readable is what it should be, and the change maps miss nothing. */
  async check(): Promise<void> {
    for (const { disk, content } of this.disks) {
      await this.expectContent(disk.name, disk, content, { offset: 0, length: content.length });
    }
    const images = [...this.held.values()].flat();
    for (const { image, content, released } of images) {
      expect(image.corrupted).toBe(0);
      for (const range of pieces(content.length, released)) await this.expectContent(image.name, image, content, range);
      for (const chunk of released) await this.expectRightOrNothing(image, content, chunk * CHUNK);
    }
    for (const newer of images) {
      for (const older of images) {
        // A number of another history says nothing.
        const comparable = older.owner === newer.owner && older.image.generationId === newer.image.generationId;
        if (comparable && older.image.changeNumber < newer.image.changeNumber) expectTold(older, newer);
      }
    }
  }
}

function releasedIn({ released }: ModelImage, { offset, length }: Range): boolean {
  for (let chunk = Math.floor(offset / CHUNK); chunk * CHUNK < offset + length; chunk++)
    if (released.has(chunk)) return true;
  return false;
}

/** What lies between the chunks left out. */
function pieces(size: number, without: ReadonlySet<number>): Range[] {
  const found: Range[] = [];
  let offset = 0;
  for (const chunk of [...[...without].sort((a, b) => a - b), Math.ceil(size / CHUNK)]) {
    const end = Math.min(chunk * CHUNK, size);
    if (end > offset) found.push({ offset, length: end - offset });
    offset = (chunk + 1) * CHUNK;
  }
  return found;
}

function overlap(a: Range, b: Range): boolean {
  return a.offset < b.offset + b.length && b.offset < a.offset + a.length;
}

/** Every byte that differs between two snapshots is told as changed since the older. */
function expectTold(older: ModelImage, newer: ModelImage): void {
  let offset = 0;
  for (const { length, changed } of newer.image.changedSince(older.image.changeNumber, 0, newer.content.length)) {
    const then = Buffer.from(older.content.subarray(offset, offset + length));
    if (!changed)
      expect(then.equals(newer.content.subarray(offset, offset + length)), `change at ${offset} not told`).toBe(true);
    offset += length;
  }
  expect(offset).toBe(newer.content.length);
}

describe.each<DriverName>(['uring', 'portable'])('core against the model, %s driver', (driver) => {
  let directory = '';
  beforeEach(() => {
    directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-model-'));
  });
  afterEach(() => fs.rmSync(directory, { recursive: true }));

  test.each(SEEDS)('seed %i', async (seed) => {
    const slabBytes = seed % 2 === 0 ? 16 * MIB : 0;
    const reactor = await openReactor({ driver, arenaBytes: 32 * MIB, slabBytes, cooperative: true });
    const world = new World(reactor, seed, directory);
    await world.open();
    for (let step = 0; step < STEPS; step++) {
      if (world.random.chance(0.25) && world.held.size < 4) await world.take();
      if (world.random.chance(0.15)) await world.destroy();
      if (world.random.chance(0.08)) await world.resize();
      if (world.random.chance(0.2)) world.release();
      await world.burst();
      if (world.random.chance(0.1)) await world.failRead();
      if (world.random.chance(0.1)) await world.failChange();
      await world.check();
    }
    await world.close();
  });
});
