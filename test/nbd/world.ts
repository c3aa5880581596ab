/** An NBD server over devices of a test's choice, on a unix socket of its own, and a count at the end of all
 *  that was not given back. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect } from 'vitest';
import { BioPool } from '../../src/block/bio.ts';
import type { BlockDevice } from '../../src/block/device.ts';
import { MemoryDevice } from '../../src/block/memory-device.ts';
import { openReactor } from '../../src/io/open.ts';
import type { DriverName } from '../../src/io/open.ts';
import type { Reactor, SocketAddress } from '../../src/io/reactor.ts';
import type { MetaContext, NbdExport } from '../../src/nbd/export.ts';
import { NbdServer } from '../../src/nbd/server.ts';
import type { NbdServerOptions } from '../../src/nbd/server.ts';
import { formatNbdUri } from '../../src/nbd/uri.ts';
import { MIB } from '../../src/util/units.ts';
import { openDescriptors } from '../contracts/reactor-bench.ts';

export interface WorldOptions extends Pick<NbdServerOptions, 'handshakeLimitMs' | 'stallLimitMs' | 'maxConnections'> {
  readonly driver?: DriverName;
  readonly arenaBytes?: number;
}

export class NbdWorld {
  readonly reactor: Reactor;
  readonly pool = new BioPool();
  readonly exports = new Map<string, NbdExport>();
  readonly server: NbdServer;
  readonly dir: string;
  readonly address: SocketAddress & { readonly kind: 'unix' };
  /** Why clients were dropped. */
  readonly dropped: string[] = [];
  readonly #descriptors: number;

  static async open(options: WorldOptions = {}): Promise<NbdWorld> {
    const descriptors = openDescriptors();
    const { driver, arenaBytes = 16 * MIB } = options;
    const reactor = await openReactor({ ...(driver && { driver }), arenaBytes, cooperative: true });
    const world = new NbdWorld(reactor, options, descriptors);
    await world.server.listen(world.address);
    return world;
  }

  private constructor(reactor: Reactor, options: WorldOptions, descriptors: number) {
    this.reactor = reactor;
    this.#descriptors = descriptors;
    this.dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-nbd-'));
    this.address = { kind: 'unix', path: path.join(this.dir, 'nbd.sock') };
    this.server = new NbdServer({
      reactor,
      pool: this.pool,
      exports: { find: (name) => this.exports.get(name), list: () => this.exports.values() },
      onDropped: (reason) => this.dropped.push(reason),
      ...(options.handshakeLimitMs === undefined ? {} : { handshakeLimitMs: options.handshakeLimitMs }),
      ...(options.maxConnections === undefined ? {} : { maxConnections: options.maxConnections }),
      ...(options.stallLimitMs === undefined ? {} : { stallLimitMs: options.stallLimitMs }),
    });
  }

  uri(exportName = ''): string {
    return formatNbdUri({ address: this.address, exportName });
  }

  /** Serves the device under a name. */
  add<T extends BlockDevice>(name: string, device: T, contexts: readonly MetaContext[] = []): T {
    const fitting = (query: string): readonly MetaContext[] =>
      query === ''
        ? contexts
        : contexts.filter((each) => each.name === query || (query.endsWith(':') && each.name.startsWith(query)));
    this.exports.set(name, { name, description: `the device ${device.name}`, device, contexts: fitting });
    return device;
  }

  addMemory(name: string, size: number, options: { readonly readOnly?: boolean } = {}): MemoryDevice {
    return this.add(name, new MemoryDevice(name === '' ? 'default' : name, size, this.reactor.arena, options));
  }

  /** Ends everything; nothing may be left. */
  async close(): Promise<void> {
    await this.server.close();
    for (const { device } of this.exports.values()) await device.close();
    expect(this.pool.lent).toBe(0);
    await expect.poll(() => this.reactor.arena.lentBytes, { interval: 2 }).toBe(0);
    expect(this.server.connections).toBe(0);
    await this.reactor.close();
    fs.rmSync(this.dir, { recursive: true });
    await expect.poll(openDescriptors, { interval: 5 }).toBeLessThanOrEqual(this.#descriptors);
  }
}
