/** A core on real files for tests: disks with trackers, their copy memory, and a snapshot set. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Arena } from '../src/io/arena.ts';
import { openReactor } from '../src/io/open.ts';
import type { DriverName } from '../src/io/open.ts';
import type { Reactor } from '../src/io/reactor.ts';
import { BioPool, READ, WRITE, runBio } from '../src/block/bio.ts';
import type { BioSink } from '../src/block/bio.ts';
import { Disk } from '../src/block/disk.ts';
import { openDevice } from '../src/block/open.ts';
import type { SnapshotEvent } from '../src/blksnap/events.ts';
import { DEFAULT_PARAMETERS } from '../src/blksnap/parameters.ts';
import type { Parameters } from '../src/blksnap/parameters.ts';
import { SnapshotSet } from '../src/blksnap/snapshot-set.ts';
import { Tracker } from '../src/blksnap/tracker.ts';
import { MIB } from '../src/util/units.ts';

const SECTOR = 512;

export class Core {
  readonly directory: string;
  readonly reactor: Reactor;
  readonly pool = new BioPool();
  readonly set: SnapshotSet;
  readonly events: SnapshotEvent[] = [];
  readonly #copyMemory: Arena;
  readonly #copyAt: number;
  readonly #disks: Disk[] = [];
  readonly #parameters: Parameters;
  readonly #given: { readonly directory: string; readonly copyMemoryBytes: number; readonly parameters: Parameters };

  static async open(
    options: {
      driver?: DriverName;
      copyMemoryBytes?: number;
      /** For storage in memory; default 0. */
      slabBytes?: number;
      parameters?: Partial<Parameters>;
      /** Of an earlier core. */
      directory?: string;
    } = {},
  ): Promise<Core> {
    const reactor = await openReactor({
      ...(options.driver && { driver: options.driver }),
      arenaBytes: 32 * MIB,
      slabBytes: options.slabBytes ?? 0,
      cooperative: true,
    });
    const directory = options.directory ?? fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-core-'));
    const parameters = { ...DEFAULT_PARAMETERS, ...options.parameters };
    return new Core(reactor, { directory, copyMemoryBytes: options.copyMemoryBytes ?? MIB, parameters });
  }

  private constructor(
    reactor: Reactor,
    given: { readonly directory: string; readonly copyMemoryBytes: number; readonly parameters: Parameters },
  ) {
    const { directory, copyMemoryBytes, parameters } = given;
    this.#given = given;
    this.#parameters = parameters;
    this.directory = directory;
    this.reactor = reactor;
    this.#copyAt = reactor.arena.allocate(copyMemoryBytes);
    const { bytes, address } = reactor.arena;
    this.#copyMemory = new Arena(bytes.buffer, address, { at: this.#copyAt, length: copyMemoryBytes });
    this.set = new SnapshotSet({ reactor, pool: this.pool, parameters, onEvent: (event) => this.events.push(event) });
  }

  path(name: string): string {
    return path.join(this.directory, name);
  }

  /** A disk over a new file (or the one that is there) with a tracker. */
  async disk(
    name: string,
    size: number,
    options: { readonly cowTimeoutMs?: number; readonly mapPath?: null } = {},
  ): Promise<{ disk: Disk; tracker: Tracker; file: string }> {
    const file = this.path(name);
    if (!fs.existsSync(file)) fs.writeFileSync(file, Buffer.alloc(size, `${name} `));
    const disk = new Disk(name, await openDevice(file, { reactor: this.reactor }));
    const tracker = new Tracker({
      reactor: this.reactor,
      pool: this.pool,
      copyMemory: this.#copyMemory,
      mapPath: options.mapPath === undefined ? this.path(`${name}.map`) : null,
      originPath: file,
      parameters: { ...this.#parameters, ...(options.cowTimeoutMs && { cowTimeoutMs: options.cowTimeoutMs }) },
    });
    await disk.attachFilter(tracker);
    this.#disks.push(disk);
    return { disk, tracker, file };
  }

  /** Fills a range with one byte; resolves with the status. */
  async write(sink: BioSink, offset: number, length: number, fill: number): Promise<number> {
    const at = this.reactor.arena.allocate(length);
    this.reactor.arena.bytes.fill(fill, at, at + length);
    const status = await runBio(this.pool, sink, { op: WRITE, offset, length, at });
    this.reactor.arena.release(at);
    return status;
  }

  async read(sink: BioSink, offset: number, length: number): Promise<{ status: number; data: Buffer }> {
    const at = this.reactor.arena.allocate(length);
    const status = await runBio(this.pool, sink, { op: READ, offset, length, at });
    const data = Buffer.from(this.reactor.arena.bytes.slice(at, at + length));
    this.reactor.arena.release(at);
    return { status, data };
  }

  /** Writes a sector that holds a number; resolves with the status. */
  async writeNumber(sink: BioSink, offset: number, number: number): Promise<number> {
    const at = this.reactor.arena.allocate(SECTOR);
    this.reactor.arena.view.setFloat64(at, number);
    const status = await runBio(this.pool, sink, { op: WRITE, offset, length: SECTOR, at });
    this.reactor.arena.release(at);
    return status;
  }

  /** The number in a sector; throws when it cannot be read. */
  async readNumber(sink: BioSink, offset: number): Promise<number> {
    const { status, data } = await this.read(sink, offset, SECTOR);
    if (status !== 0) throw new Error(`reading failed with errno ${status}`);
    return data.readDoubleBE(0);
  }

  /** Ends as `close` does, and begins again with the same files. */
  async restart(): Promise<Core> {
    await this.#end();
    return await Core.open(this.#given);
  }

  /** Ends everything; throws when a bio, a buffer or a descriptor of the reactor's is still held. */
  async close(): Promise<void> {
    await this.#end();
    fs.rmSync(this.directory, { recursive: true });
  }

  async #end(): Promise<void> {
    await this.set.close();
    for (const disk of this.#disks) await disk.close();
    this.reactor.arena.release(this.#copyAt);
    const { lentBytes } = this.reactor.arena;
    const bytes = [lentBytes, this.#copyMemory.lentBytes, this.reactor.slabs.lentBytes];
    if (this.pool.lent > 0 || bytes.some((lent) => lent > 0))
      throw new Error(`still held: ${this.pool.lent} bios, ${bytes.join(' + ')} bytes`);
    await this.reactor.close();
  }
}
