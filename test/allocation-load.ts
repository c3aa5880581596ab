/** Runs many small requests on the hot path and prints what they left on the heap, as JSON. A program of its own, so
 *  that nothing else allocates; started by test/allocations.test.ts with a young generation so large that nothing is
 *  collected meanwhile: what was allocated is then still there to be counted. Prints the bytes per request of each part
 *  in which indeed nothing was collected.
 *
 *      node --expose-gc --import tsx test/allocation-load.ts disk|page-cache|nbd read|write REQUESTS
 *
 *  page-cache: the disk in TMPDIR; else in memory. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { PerformanceObserver } from 'node:perf_hooks';
import { setImmediate as turn } from 'node:timers/promises';
import { READ, WRITE } from '../src/block/bio.ts';
import type { Bio, BioOwner, BioPool, BioSink } from '../src/block/bio.ts';
import type { Reactor } from '../src/io/reactor.ts';
import { NbdClient } from '../src/nbd/client.ts';
import { NbdServer } from '../src/nbd/server.ts';
import { Core } from './core.ts';

const QUEUE_DEPTH = 32;
const BLOCK_BYTES = 4096;
const BLOCKS = 4096;
const GIB = 1024 ** 3;
const DISK_BYTES = GIB;
/** The compiler goes on improving for a while, so the best of several parts counts. */
const PARTS = 4;

/** Keeps a queue of requests full until all are done. */
class Load implements BioOwner {
  readonly #pool: BioPool;
  readonly #sink: BioSink;
  readonly #op: typeof READ | typeof WRITE;
  readonly #memory: number;
  #left = 0;
  #pending = 0;
  #block = 1;
  #over: () => void = () => {};

  constructor(reactor: Reactor, pool: BioPool, sink: BioSink, op: typeof READ | typeof WRITE) {
    this.#pool = pool;
    this.#sink = sink;
    this.#op = op;
    this.#memory = reactor.arena.allocate(QUEUE_DEPTH * BLOCK_BYTES);
  }

  run(requests: number): Promise<void> {
    this.#left = requests;
    return new Promise((resolve) => {
      this.#over = resolve;
      for (let slot = 0; slot < QUEUE_DEPTH; slot++) this.#submit(this.#memory + slot * BLOCK_BYTES);
    });
  }

  bioEnded(bio: Bio): void {
    const { status, at } = bio;
    this.#pool.put(bio);
    this.#pending--;
    if (status !== 0) throw new Error(`a request ended with errno ${status}`);
    if (this.#left > 0) this.#submit(at);
    else if (this.#pending === 0) this.#over();
  }

  #submit(at: number): void {
    this.#left--;
    this.#pending++;
    this.#block = (this.#block * 5 + 3) % BLOCKS;
    this.#sink.submit(this.#pool.get(this.#op, this.#block * BLOCK_BYTES, BLOCK_BYTES, at, 0, this));
  }

  close(reactor: Reactor): void {
    reactor.arena.release(this.#memory);
  }
}

/** The disk itself, or for nbd a client of it on a unix socket: then both ends of the connection are counted. */
async function openSink(core: Core, disk: BioSink & NbdDisk, way: string): Promise<[BioSink, () => Promise<void>]> {
  if (way !== 'nbd') return [disk, async () => {}];
  const { reactor, pool } = core;
  const served = { name: '', description: '', device: disk, contexts: () => [] };
  const exports = { find: () => served, list: () => [served] };
  const server = new NbdServer({ reactor, pool, exports });
  const address = { kind: 'unix', path: core.path('nbd.sock') } as const;
  await server.listen(address);
  const client = await NbdClient.connect({ reactor, address, exportName: '' });
  const close = async (): Promise<void> => {
    await client.close();
    await server.close();
  };
  return [client, close];
}

type NbdDisk = Awaited<ReturnType<Core['disk']>>['disk'];

async function main([way = 'disk', rw = 'read', requests = '100000']: string[]): Promise<void> {
  const collected: number[] = [];
  const observer = new PerformanceObserver((list) => collected.push(...list.getEntries().map((one) => one.startTime)));
  observer.observe({ entryTypes: ['gc'] });
  const core = await Core.open();
  fs.writeFileSync(core.path('disk'), '');
  fs.truncateSync(core.path('disk'), DISK_BYTES);
  const { disk } = await core.disk('disk', DISK_BYTES);
  const [sink, close] = await openSink(core, disk, way);
  const load = new Load(core.reactor, core.pool, sink, rw === 'read' ? READ : WRITE);
  await load.run(100_000); // Compiled, pools filled.
  const bytesPerRequest: number[] = [];
  for (let part = 0; part < PARTS; part++) {
    await turn();
    globalThis.gc!();
    await turn();
    const began = performance.now();
    const before = process.memoryUsage().heapUsed;
    await load.run(Number(requests) / PARTS);
    const bytes = process.memoryUsage().heapUsed - before;
    const ended = performance.now();
    await turn();
    await turn();
    const during = collected.filter((at) => at >= began && at <= ended).length;
    if (during === 0) bytesPerRequest.push((bytes * PARTS) / Number(requests));
  }
  load.close(core.reactor);
  await close();
  await core.close();
  observer.disconnect();
  fs.writeSync(1, JSON.stringify(bytesPerRequest));
}

if (process.argv[2] !== 'page-cache')
  process.env['TMPDIR'] = fs.existsSync('/dev/shm') ? '/dev/shm' : path.resolve(os.tmpdir());
await main(process.argv.slice(2));
