/** A daemon in this process, its client, and NBD to its exports: for tests that span the two. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { pino } from 'pino';
import { Client } from '../src/api/client.ts';
import { serveApi } from '../src/api/server.ts';
import type { ApiServer } from '../src/api/server.ts';
import { serveApiOnTcp } from '../src/api/tcp-server.ts';
import { BioPool, READ, WRITE, runBio } from '../src/block/bio.ts';
import { Daemon } from '../src/daemon/daemon.ts';
import { daemonPaths } from '../src/daemon/paths.ts';
import { openReactor } from '../src/io/open.ts';
import type { Arena } from '../src/io/arena.ts';
import type { Reactor } from '../src/io/reactor.ts';
import { NbdClient } from '../src/nbd/client.ts';
import { parseNbdUri } from '../src/nbd/uri.ts';
import { MIB } from '../src/util/units.ts';

export class ApiWorld {
  readonly directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-world-'));
  readonly client = new Client({ dir: this.directory });
  readonly pool = new BioPool();
  readonly #log = pino({ level: 'silent' });
  #reactor!: Reactor;
  #daemon!: Daemon;
  #api!: ApiServer;
  #tcp: (ApiServer & { readonly url: string }) | null = null;
  readonly #token: string | null;

  /** With a token, also on a port of loopback. */
  static async open(token: string | null = null): Promise<ApiWorld> {
    const world = new ApiWorld(token);
    world.#reactor = await openReactor({ arenaBytes: 8 * MIB, cooperative: true });
    await world.start();
    return world;
  }

  private constructor(token: string | null) {
    this.#token = token;
  }

  /** Of the API over TCP. */
  get url(): string {
    return this.#tcp!.url;
  }

  async start(): Promise<void> {
    const paths = daemonPaths(this.directory);
    const onFatal = (cause: Error): void => {
      throw cause;
    };
    this.#daemon = await Daemon.start({ paths, nbd: null, driver: null, log: this.#log, onFatal });
    this.#api = await serveApi(paths.apiSocket, this.#daemon, this.#log);
    if (this.#token === null) return;
    const where = { host: '127.0.0.1', port: 0, token: this.#token, certificate: null };
    this.#tcp = await serveApiOnTcp({ daemon: this.#daemon, log: this.#log }, where);
  }

  async stop(): Promise<void> {
    await this.#tcp?.close();
    await this.#api.close();
    await this.#daemon.stop();
  }

  /** Throws when a bio or a buffer is still held. */
  async close(): Promise<void> {
    await this.stop();
    const held = this.#reactor.arena.lentBytes + this.pool.lent;
    if (held > 0) throw new Error(`still held: ${this.pool.lent} bios, ${this.#reactor.arena.lentBytes} bytes`);
    await this.#reactor.close();
    fs.rmSync(this.directory, { recursive: true });
  }

  get arena(): Arena {
    return this.#reactor.arena;
  }

  /** A new file of zeros. */
  file(name: string, size: number): string {
    const file = path.join(this.directory, name);
    fs.writeFileSync(file, '');
    fs.truncateSync(file, size);
    return file;
  }

  async connect(uri: string): Promise<NbdClient> {
    const { address, exportName } = parseNbdUri(uri);
    return await NbdClient.connect({ reactor: this.#reactor, address, exportName, contexts: [] });
  }

  async uriOf(disk: string): Promise<string> {
    return (await this.client.disk(disk)).uri;
  }

  /** Fills a range with one value; the errno. */
  async fill(uri: string, offset: number, value: number, length = 4096): Promise<number> {
    const device = await this.connect(uri);
    const at = this.#reactor.arena.allocate(length);
    this.#reactor.arena.bytes.fill(value, at, at + length);
    const status = await runBio(this.pool, device, { op: WRITE, offset, length, at });
    this.#reactor.arena.release(at);
    await device.close();
    return status;
  }

  /** The value of the first byte there, after a check that all are the same; -errno when they cannot be read. */
  async valueAt(uri: string, offset: number, length = 4096): Promise<number> {
    const device = await this.connect(uri);
    const at = this.#reactor.arena.allocate(length);
    const status = await runBio(this.pool, device, { op: READ, offset, length, at });
    const values = new Set(this.#reactor.arena.bytes.subarray(at, at + length));
    this.#reactor.arena.release(at);
    await device.close();
    if (status !== 0) return -status;
    if (values.size > 1) throw new Error(`different values at ${offset}: ${[...values].join(', ')}`);
    return [...values][0]!;
  }
}
