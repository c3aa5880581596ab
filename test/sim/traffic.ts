/** Random operations on the disks and images of a world, many under way at once, and what each may end with.
 *
 *  A disk's operation may fail only when a fault struck that disk meanwhile: nothing that happens to a snapshot is
 *  its origin's problem. Ranges in use are not changed by a second operation, so every answer is determined. */

import { NO_MEMORY } from '../../src/io/arena.ts';
import { DISCARD, FLUSH, FUA, NO_HOLE, READ, WRITE, WRITE_ZEROES, runBio } from '../../src/block/bio.ts';
import type { BioPool, BioSink, Op } from '../../src/block/bio.ts';
import { ERRNO } from '../../src/util/errors.ts';
import type { Prng } from '../../src/util/prng.ts';
import { overlaps } from './disk-model.ts';
import type { Change, Range } from './disk-model.ts';
import type { SimClient } from './client.ts';
import type { SimReactor } from './reactor.ts';
import type { SimDisk, SimImage, World } from './world.ts';

const SECTOR = 512;
const CHUNK = 4096;
/** In the place of an errno: the client was cut off, and knows nothing. */
const CUT_OFF = -1;

/** What an operation is told that it has to do. */
interface Io {
  readonly op: Op;
  readonly range: Range;
  readonly flags: number;
  readonly data: Uint8Array | null;
}

/** How an operation gets to a disk or an image: at once, or from a client over NBD. */
interface Way {
  readonly name: string;
  readonly sink: BioSink;
  readonly pool: BioPool;
  readonly reactor: SimReactor;
  readonly client: SimClient | null;
}

export class Traffic {
  readonly #world: World;
  readonly #busy = new Map<object, Set<Range & { readonly changes: boolean }>>();
  readonly #running = new Set<Promise<void>>();
  readonly #remote = new Set<Promise<unknown>>();
  #abandoned = false;

  constructor(world: World) {
    this.#world = world;
  }

  get underWay(): number {
    return this.#running.size;
  }

  /** Resolves when all that was started has ended; rejects with what was wrong. */
  async ended(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
  }

  /** The process is gone: nobody will hear of what was under way. */
  abandon(): void {
    this.#abandoned = true;
    for (const promise of this.#running) promise.catch(() => {});
    this.#running.clear();
  }

  /** What clients had asked for ends, also when the daemon was killed. */
  async remoteEnded(): Promise<void> {
    while (this.#remote.size > 0) await Promise.all(this.#remote);
  }

  run(promise: Promise<void>): void {
    this.#running.add(promise);
    // The failure itself is heard by `ended`.
    promise.then(
      () => this.#running.delete(promise),
      () => {},
    );
  }

  #start(way: Way, promise: Promise<void>): void {
    if (way.client === null) this.run(promise);
    else this.runRemote(promise);
  }

  /** As run, of something that outlives the daemon. */
  runRemote(promise: Promise<void>): void {
    this.run(promise);
    this.#remote.add(promise);
    const ended = (): void => void this.#remote.delete(promise);
    promise.then(ended, ended);
  }

  /** Starts an operation, if what it wants is free. */
  start(random: Prng): void {
    const { disks, images } = this.#world;
    const owner = disks[random.below(disks.length)]!;
    const image = images[random.below(Math.max(1, images.length))];
    const kind = random.below(100);
    if (kind < 50) this.#changeDisk(owner, random);
    else if (kind < 60) this.#readDisk(owner, random);
    else if (kind < 65) this.#flushDisk(owner, random);
    else if (image === undefined) this.#changeDisk(owner, random);
    else if (kind < 88) this.#readImage(image, random);
    else this.#changeImage(image, random);
  }

  // --- ranges ---------------------------------------------------------------------------------

  #range(random: Prng, size: number): Range {
    const sectors = size / SECTOR;
    const whole = random.chance(0.3);
    const most = random.chance(0.15) ? 400 : random.chance(0.5) ? 4 : 24;
    const first = whole ? Math.floor(random.below(sectors) / 8) * 8 : random.below(sectors);
    const count = Math.min(sectors - first, 1 + random.below(most));
    return {
      offset: first * SECTOR,
      length: (whole ? Math.min(sectors - first, Math.ceil(count / 8) * 8) : count) * SECTOR,
    };
  }

  /** The range is in use until the returned function is called; null when it cannot be now. */
  #claim(target: object, range: Range, changes: boolean): (() => void) | null {
    let busy = this.#busy.get(target);
    if (busy === undefined) this.#busy.set(target, (busy = new Set()));
    for (const other of busy) if ((changes || other.changes) && overlaps(other, range)) return null;
    const claim = { ...range, changes };
    busy.add(claim);
    return () => busy.delete(claim);
  }

  // --- ways -----------------------------------------------------------------------------------

  #way(target: BioSink & { readonly name: string }, random: Prng): Way {
    const { clients, pool, reactor } = this.#world;
    const near = clients.filter((client) => client.devices.has(target.name) && !client.broken(target.name));
    const client = random.chance(0.6) ? near[random.below(Math.max(1, near.length))] : undefined;
    const { name } = target;
    if (client === undefined) return { name, sink: target, pool, reactor, client: null };
    return { name, sink: client.devices.get(name)!, pool: client.pool, reactor: client.reactor, client };
  }

  /** A client may lose its connection only when what it was connected to is gone. */
  #expectGone(name: string): void {
    if (this.#world.serving.offers(name)) throw new Error(`a client of ${name} lost its connection without a reason`);
  }

  // --- one operation --------------------------------------------------------------------------

  async #run(way: Way, { op, range, flags, data }: Io): Promise<{ status: number; got: Uint8Array } | null> {
    const { sink, pool, reactor, client } = way;
    const { arena } = reactor;
    const withData = op === READ || op === WRITE;
    const at = withData ? arena.allocate(range.length) : 0;
    if (at === NO_MEMORY) return null;
    if (op === WRITE) arena.bytes.set(data!, at);
    else if (op === READ) arena.bytes.fill(0xcc, at, at + range.length);
    const ending = runBio(pool, sink, { op, ...range, at, flags });
    const status = client === null ? await ending : await this.#remoteEnd(client, way.name, ending);
    const got = op === READ ? arena.bytes.slice(at, at + range.length) : new Uint8Array(0);
    // Whoever still looks at memory that was given back shall find nothing of use.
    if (withData) arena.bytes.fill(0xdd, at, at + range.length);
    if (withData) arena.release(at);
    reactor.note(op, range.offset, range.length, status);
    return { status, got };
  }

  async #remoteEnd(client: SimClient, name: string, ending: Promise<number>): Promise<number> {
    const status = await Promise.race([ending, client.whenVanished.then(() => CUT_OFF)]);
    if (status !== CUT_OFF && !client.broken(name)) return status;
    if (!client.vanished && !this.#abandoned) this.#expectGone(name);
    // What the server has of it may still take effect; nothing else may touch the range until it has.
    await client.gone(name);
    return CUT_OFF;
  }

  #drawChange(random: Prng, range: Range): Io {
    const op = random.chance(0.7) ? WRITE : random.chance(0.5) ? DISCARD : WRITE_ZEROES;
    const data = new Uint8Array(range.length);
    if (op === WRITE && !random.chance(0.1)) random.fill(data.subarray(0));
    const flags = (random.chance(0.15) ? FUA : 0) | (op === WRITE_ZEROES && random.chance(0.5) ? NO_HOLE : 0);
    return { op, range, flags, data };
  }

  // --- disks ----------------------------------------------------------------------------------

  #changeDisk(owner: SimDisk, random: Prng): void {
    const range = this.#range(random, owner.model.content.length);
    const io = this.#drawChange(random, range);
    const way = this.#way(owner.disk, random);
    const done = this.#claim(owner, range, true);
    if (done !== null) this.#start(way, this.#runChange(owner, way, io).finally(done));
  }

  /** A discard, or a write of noise. */
  change(owner: SimDisk, range: Range, { random, discards }: { random: Prng; discards: boolean }): void {
    const data = new Uint8Array(range.length);
    if (!discards) random.fill(data.subarray(0));
    const way = this.#way(owner.disk, random);
    const done = this.#claim(owner, range, true);
    const io: Io = { op: discards ? DISCARD : WRITE, range, flags: 0, data };
    if (done !== null) this.#start(way, this.#runChange(owner, way, io).finally(done));
  }

  async #runChange({ model, file }: SimDisk, way: Way, io: Io): Promise<void> {
    const { write, sync, allocate } = file.faults;
    const change: Change = {
      ...io.range,
      data: io.data!,
      fua: (io.flags & FUA) !== 0,
      remote: way.client !== null,
      startedAt: this.#world.machine.tick(),
      endedAt: Infinity,
    };
    model.started(change);
    const end = await this.#run(way, io);
    if (this.#abandoned) return;
    if (end === null) {
      model.cancelled(change);
      return;
    }
    model.ended(change, end.status === 0, this.#world.machine.tick());
    if (end.status === 0) return;
    const struck = file.faults.write + file.faults.sync + file.faults.allocate > write + sync + allocate;
    const refused = (model.unreliable || this.#mayHaveLost(model, file)) && change.fua;
    if (!struck && !refused && end.status !== CUT_OFF)
      throw failure(`a change of ${model.name} (op ${io.op}, flags ${io.flags}) failed`, io.range, end.status);
    const dropped = file.faults.sync > sync || (io.op === WRITE && file.faults.write > write);
    if (!change.fua || !dropped) return;
    if (end.status === CUT_OFF) model.maybeUnreliable = true;
    else model.unreliableSince = Math.min(model.unreliableSince, this.#world.machine.tick());
  }

  #readDisk(owner: SimDisk, random: Prng): void {
    const range = this.#range(random, owner.model.content.length);
    if (owner.model.uncertain.some((change) => overlaps(change, range))) return;
    const way = this.#way(owner.disk, random);
    const done = this.#claim(owner, range, false);
    if (done !== null) this.#start(way, this.#runDiskRead(owner, way, range).finally(done));
  }

  async #runDiskRead({ model, file }: SimDisk, way: Way, range: Range): Promise<void> {
    const { read } = file.faults;
    const end = await this.#run(way, { op: READ, range, flags: 0, data: null });
    if (end === null || end.status === CUT_OFF || this.#abandoned) return;
    if (end.status === 0) expectBytes(model.name, end.got, model.content, range.offset);
    else if (file.faults.read === read) throw failure(`a read of ${model.name} failed`, range, end.status);
  }

  /** A client's write or flush may have failed, and its answer be still on its way. */
  #mayHaveLost(model: SimDisk['model'], { faults }: SimDisk['file']): boolean {
    return model.maybeUnreliable || (this.#remote.size > 0 && faults.write + faults.sync > 0);
  }

  #flushDisk(owner: SimDisk, random: Prng): void {
    const way = this.#way(owner.disk, random);
    this.#start(way, this.#flush(owner, way));
  }

  async #flush({ model, file }: SimDisk, way: Way): Promise<void> {
    const startedAt = this.#world.machine.tick();
    const { sync } = file.faults;
    const end = await this.#run(way, { op: FLUSH, range: { offset: 0, length: 0 }, flags: 0, data: null });
    // Whoever was cut off did not hear that the sync failed; the device knows.
    if (end?.status === CUT_OFF && file.faults.sync > sync) model.maybeUnreliable = true;
    if (end?.status === CUT_OFF || this.#abandoned) return;
    if (end?.status === 0) {
      // Over NBD a flush that ended before another failed may be heard of after it.
      const mayBeOlder = way.client !== null && startedAt <= model.unreliableSince;
      if (model.unreliable && !mayBeOlder)
        throw failure(`a flush of ${model.name} after a failed sync succeeded`, { offset: 0, length: 0 }, 0);
      model.flushed(startedAt);
    } else if (file.faults.sync > sync)
      model.unreliableSince = Math.min(model.unreliableSince, this.#world.machine.tick());
    else if (!model.unreliable && !this.#mayHaveLost(model, file))
      throw failure(`a flush of ${model.name} failed`, { offset: 0, length: 0 }, end?.status ?? 0);
  }

  // --- images ---------------------------------------------------------------------------------

  #readImage(held: SimImage, random: Prng): void {
    const range = this.#range(random, held.content.length);
    if (isReleased(held, range) || [...held.uncertain].some((each) => overlaps(lengthOf(each), range))) return;
    const way = this.#way(held.image, random);
    const done = this.#claim(held, range, false);
    if (done !== null) this.#start(way, this.#runImageRead(held, way, range).finally(done));
  }

  async #runImageRead(held: SimImage, way: Way, range: Range): Promise<void> {
    const { image } = held;
    const end = await this.#run(way, { op: READ, range, flags: 0, data: null });
    if (end === null || end.status === CUT_OFF || this.#abandoned || isReleased(held, range)) return;
    if (end.status === 0) expectBytes(image.name, end.got, held.content, range.offset);
    else this.#expectExcuse(held, range, end.status);
  }

  #changeImage(held: SimImage, random: Prng): void {
    const range = this.#range(random, held.content.length);
    const io = this.#drawChange(random, range);
    if (isReleased(held, range) || held.busy > 0 || held.image.readOnly) return;
    const way = this.#way(held.image, random);
    const done = this.#claim(held, range, true);
    if (done !== null) this.#start(way, this.#runImageChange(held, way, io).finally(done));
  }

  async #runImageChange(held: SimImage, way: Way, io: Io): Promise<void> {
    const change = { offset: io.range.offset, data: io.data! };
    held.uncertain.add(change);
    const end = await this.#run(way, io);
    if (end?.status === CUT_OFF || this.#abandoned) return;
    if (end === null) held.uncertain.delete(change);
    else if (end.status === 0) {
      held.uncertain.delete(change);
      held.content.set(change.data, change.offset);
    } else this.#expectExcuse(held, io.range, end.status);
  }

  /** An image's operation may fail when it is lost, closed or its machine fails. */
  #expectExcuse({ image }: SimImage, range: Range, status: number): void {
    if (image.corrupted !== 0 || status === ERRNO.ESHUTDOWN) return;
    if (!mayFail(this.#world)) throw failure(`an operation on ${image.name} failed`, range, status);
  }
}

/** Whether this machine's weather can hurt a snapshot at all. */
export function mayFail({ machine }: World): boolean {
  const { weather } = machine;
  return (
    weather.originReadError + weather.storageReadError + weather.storageWriteError > 0 ||
    weather.writebackError + weather.hoggedArena > 0 ||
    weather.storagePages !== Infinity ||
    weather.cowTimeoutMs < 1000 ||
    weather.badSectors
  );
}

function lengthOf({ offset, data }: { offset: number; data: Uint8Array }): Range {
  return { offset, length: data.length };
}

function isReleased({ released }: SimImage, { offset, length }: Range): boolean {
  for (let chunk = Math.floor(offset / CHUNK); chunk * CHUNK < offset + length; chunk++)
    if (released.has(chunk)) return true;
  return false;
}

function failure(what: string, { offset, length }: Range, status: number): Error {
  return new Error(`${what} without a reason (${length} bytes at ${offset}, errno ${status})`);
}

export function expectBytes(what: string, got: Uint8Array, content: Uint8Array, offset: number): void {
  const want = content.subarray(offset, offset + got.length);
  if (Buffer.compare(got, want) === 0) return;
  const at = got.findIndex((byte, i) => byte !== want[i]);
  throw new Error(`${what} differs at ${offset + at} (range ${offset}+${got.length})`);
}
