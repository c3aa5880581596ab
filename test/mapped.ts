/** Mapped devices over devices in memory, for tests: a reactor, named devices, and bios that can be awaited. */

import { BioPool, READ, WRITE, runBio } from '../src/block/bio.ts';
import type { BioSink, Op } from '../src/block/bio.ts';
import type { BlockDevice } from '../src/block/device.ts';
import { MemoryDevice } from '../src/block/memory-device.ts';
import { MappedDevice } from '../src/dm/mapped-device.ts';
import { openMapping, planMapping } from '../src/dm/mapping.ts';
import type { Mapping } from '../src/dm/mapping.ts';
import { parseTable } from '../src/dm/table.ts';
import { openReactor } from '../src/io/open.ts';
import type { Reactor } from '../src/io/reactor.ts';
import { BlksnapError } from '../src/util/errors.ts';
import { MIB } from '../src/util/units.ts';

export class MappedWorld {
  readonly reactor: Reactor;
  readonly pool = new BioPool();
  readonly devices = new Map<string, BlockDevice>();
  /** Devices that are lent now. */
  lent = 0;
  readonly #mapped: MappedDevice[] = [];

  static async open(): Promise<MappedWorld> {
    return new MappedWorld(await openReactor({ arenaBytes: 16 * MIB, cooperative: true }));
  }

  private constructor(reactor: Reactor) {
    this.reactor = reactor;
  }

  memory(name: string, size: number): MemoryDevice {
    const device = new MemoryDevice(name, size, this.reactor.arena);
    this.devices.set(name, device);
    return device;
  }

  mapping(table: string): Promise<Mapping> {
    return openMapping(planMapping(parseTable(table), this), async (name) => {
      const device = this.devices.get(name);
      if (device === undefined) throw new BlksnapError('ENOENT', `No device "${name}"`);
      this.lent++;
      return {
        device,
        giveBack: async () => {
          this.lent--;
        },
      };
    });
  }

  async map(table: string): Promise<MappedDevice> {
    const device = new MappedDevice('mapped', await this.mapping(table), this.pool);
    this.#mapped.push(device);
    return device;
  }

  run(sink: BioSink, op: Op, offset = 0, length = 0, flags = 0): Promise<number> {
    return runBio(this.pool, sink, { op, offset, length, at: 0, flags });
  }

  async write(sink: BioSink, offset: number, data: Uint8Array): Promise<number> {
    const at = this.reactor.arena.allocate(data.length);
    this.reactor.arena.bytes.set(data, at);
    const status = await runBio(this.pool, sink, { op: WRITE, offset, length: data.length, at });
    this.reactor.arena.release(at);
    return status;
  }

  /** The bytes, or the errno. */
  async read(sink: BioSink, offset: number, length: number): Promise<Buffer | number> {
    const at = this.reactor.arena.allocate(length);
    const status = await runBio(this.pool, sink, { op: READ, offset, length, at });
    const data = Buffer.from(this.reactor.arena.bytes.slice(at, at + length));
    this.reactor.arena.release(at);
    return status === 0 ? data : status;
  }

  /** Throws when a bio, a buffer or a device is still held. */
  async close(): Promise<void> {
    for (const device of this.#mapped) await device.close();
    const { lentBytes } = this.reactor.arena;
    if (this.pool.lent + lentBytes + this.lent > 0) {
      throw new Error(`still held: ${this.pool.lent} bios, ${lentBytes} bytes, ${this.lent} devices`);
    }
    await this.reactor.close();
  }
}
