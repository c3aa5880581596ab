/** The filter mechanism as others use it: the example filters, and filters that come and go a thousand times
 *  under a load that a model verifies. */

import { setImmediate as turn } from 'node:timers/promises';
import { RateLimiter, register as registerRateLimiter } from '../examples/rate-limiter.mjs';
import { register as registerWriteOnce } from '../examples/write-once.mjs';
import { DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, BioPool, runBio } from '../src/block/bio.ts';
import type { Bio } from '../src/block/bio.ts';
import { Disk } from '../src/block/disk.ts';
import { BlockFilter, FilterRegistry } from '../src/block/filter.ts';
import { MemoryDevice } from '../src/block/memory-device.ts';
import { openReactor } from '../src/io/open.ts';
import type { Reactor } from '../src/io/reactor.ts';
import { ERRNO } from '../src/util/errors.ts';
import { Prng } from '../src/util/prng.ts';
import { MIB } from '../src/util/units.ts';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

const BLOCK = 4096;
const BLOCKS = 256;

/** Notes the numbers that the writes carry, in the order in which they arrive. */
class NotingDevice extends MemoryDevice {
  readonly arrived: number[] = [];
  readonly #bytes: Uint8Array;

  constructor(reactor: Reactor) {
    super('memory', BLOCKS * BLOCK, reactor.arena);
    this.#bytes = reactor.arena.bytes;
  }

  override submit(bio: Bio): void {
    if (bio.op === WRITE) this.arrived.push(new DataView(this.#bytes.buffer).getUint32(bio.at, true));
    super.submit(bio);
  }
}

/** Passes every bio on a turn later, all in their order: a filter that always holds something. */
class Delay extends BlockFilter {
  readonly name: string;
  readonly altitude: number;
  readonly #reactor: Reactor;
  #head: Bio | null = null;
  #tail: Bio | null = null;
  #armed = false;

  constructor(name: string, altitude: number, reactor: Reactor) {
    super();
    this.name = name;
    this.altitude = altitude;
    this.#reactor = reactor;
  }

  submit(bio: Bio): void {
    bio.next = null;
    if (this.#tail === null) this.#head = bio;
    else this.#tail.next = bio;
    this.#tail = bio;
    if (this.#armed) return;
    this.#armed = true;
    this.#reactor.timer(1, this);
  }

  complete(): void {
    this.#armed = false;
    let bio = this.#head;
    this.#head = null;
    this.#tail = null;
    while (bio !== null) {
      const next: Bio | null = bio.next;
      this.below.submit(bio);
      bio = next;
    }
  }

  async attach(): Promise<void> {}
  async detach(): Promise<void> {
    if (this.#head !== null) throw new Error('detached while it holds bios');
  }
  async ctl(): Promise<unknown> {
    return null;
  }
}

describe.each(['uring', 'portable'] as const)('filters on the %s driver', (driver) => {
  let reactor: Reactor;
  let pool: BioPool;
  let device: NotingDevice;
  let disk: Disk;
  let filters: FilterRegistry;

  beforeEach(async (context) => {
    try {
      reactor = await openReactor({ driver, arenaBytes: 8 * MIB, cooperative: true });
    } catch (cause) {
      context.skip(true, (cause as Error).message);
    }
    pool = new BioPool();
    device = new NotingDevice(reactor);
    disk = new Disk('d', device);
    filters = new FilterRegistry();
    registerRateLimiter(filters, { reactor, pool });
    registerWriteOnce(filters);
    filters.register('delay', () => new Delay('delay', 200, reactor));
  });

  /** Nothing may be left: bios, arena memory, operations, timers. */
  afterEach(async () => {
    await disk.close();
    expect({ lent: pool.lent, bytes: reactor.arena.lentBytes, inFlight: reactor.inFlight }).toEqual({
      lent: 0,
      bytes: 0,
      inFlight: 0,
    });
    await reactor.close();
  });

  async function io(
    op: typeof WRITE | typeof READ | typeof DISCARD | typeof WRITE_ZEROES,
    block: number,
    fill = 0,
  ): Promise<{ status: number; value: number }> {
    const at = reactor.arena.allocate(BLOCK);
    const words = new DataView(reactor.arena.bytes.buffer);
    reactor.arena.bytes.fill(fill & 0xff, at, at + BLOCK);
    words.setUint32(at, fill, true);
    const status = await runBio(pool, disk, { op, offset: block * BLOCK, length: BLOCK, at });
    const value = words.getUint32(at, true);
    reactor.arena.release(at);
    return { status, value };
  }

  it('come and go 1,000 times under load: nothing lost, nothing reordered', async () => {
    const seed = Number(process.env['BLKSNAP_SEED'] ?? 1);
    const random = new Prng(seed);
    const model = new Uint32Array(BLOCKS);
    const sent: number[] = [];
    let running = true;
    let number = 0;
    /** Each worker has blocks of its own, so that the model knows what each must hold. */
    const worker = async (own: number): Promise<void> => {
      while (running) {
        const block = random.below(BLOCKS / 8) * 8 + own;
        if (random.below(3) > 0) {
          sent.push(++number);
          model[block] = number;
          expect((await io(WRITE, block, number)).status).toBe(0);
        } else {
          const { status, value } = await io(READ, block);
          expect({ seed, status, block, value }).toEqual({ seed, status: 0, block, value: model[block] });
        }
        await turn();
      }
    };
    const load = Array.from({ length: 8 }, (_, own) => worker(own));
    const fast = { bytesPerSecond: 200 * MIB };
    for (let round = 0; round < 1000; round++) {
      const names = random.below(2) === 0 ? ['rate-limiter', 'delay'] : ['delay', 'rate-limiter'];
      const chosen = names.slice(0, 1 + random.below(2));
      for (const name of chosen) await filters.attach(name, disk, fast);
      if (chosen.length === 2) expect(disk.filters.map(({ name }) => name)).toEqual(['rate-limiter', 'delay']);
      expect(() => filters.unregister(chosen[0]!)).toThrow(/attached to 1 disks/);
      for (const before = number; number < before + 2;) await turn();
      for (const name of random.below(2) === 0 ? chosen : chosen.toReversed()) await filters.detach(name, disk);
    }
    running = false;
    await Promise.all(load);
    expect(sent.length).toBeGreaterThan(1000);
    expect(device.arrived).toEqual(sent);
    for (let block = 0; block < BLOCKS; block++) expect((await io(READ, block)).value).toBe(model[block]);
    expect(filters.list().flatMap(({ disks }) => disks)).toEqual([]);
    filters.unregister('delay');
    await expect(filters.attach('delay', disk, null)).rejects.toThrow(/No filter "delay"/);
  });

  it('the rate limiter keeps to its rate and lets everything pass in order', async () => {
    await filters.attach('rate-limiter', disk, { bytesPerSecond: MIB });
    const began = performance.now();
    const writes = Array.from({ length: 76 }, (_, i) => io(WRITE, i, i + 1));
    const flushed = runBio(pool, disk, { op: FLUSH, offset: 0, length: 0 });
    for (const { status } of await Promise.all(writes)) expect(status).toBe(0);
    expect(await flushed).toBe(0);
    // 76 blocks less one burst of 100 ms, at 1 MiB/s: about 197 ms.
    expect(performance.now() - began).toBeGreaterThan(150);
    expect(device.arrived).toEqual(Array.from({ length: 76 }, (_, i) => i + 1));
    const filter = disk.filter('rate-limiter')!;
    expect(filter).toBeInstanceOf(RateLimiter);
    expect(await filter.ctl('stats', null)).toMatchObject({ bytesPerSecond: MIB, waiting: 0 });
    await filter.ctl('rate', { bytesPerSecond: 1000 * MIB });
    await Promise.all(Array.from({ length: 64 }, (_, i) => io(WRITE, i, i + 1)));
    await expect(filter.ctl('rate', { bytesPerSecond: 0 })).rejects.toMatchObject({ code: 'EINVAL' });
    await expect(filters.attach('rate-limiter', disk, { bytesPerSecond: 1 })).rejects.toMatchObject({
      code: 'EALREADY',
    });
  });

  it('the write-once guard lets no block change, and remembers by the disk itself', async () => {
    await io(WRITE, 3, 33);
    await filters.attach('write-once', disk, null);
    expect((await io(WRITE, 3, 34)).status).toBe(ERRNO.EPERM);
    expect((await io(DISCARD, 3)).status).toBe(ERRNO.EPERM);
    expect((await io(WRITE, 4, 44)).status).toBe(0);
    expect((await io(WRITE_ZEROES, 4)).status).toBe(ERRNO.EPERM);
    const [one, other] = await Promise.all([io(WRITE, 5, 1), io(WRITE, 5, 2)]);
    expect([one.status, other.status]).toEqual([0, ERRNO.EPERM]);
    expect((await io(READ, 3)).value).toBe(33);
    expect(await disk.filter('write-once')!.ctl('stats', null)).toEqual({
      blockBytes: BLOCK,
      writtenBlocks: 3,
      refusedBios: 4,
    });
    await filters.detach('write-once', disk);
    await filters.attach('write-once', disk, null);
    expect((await io(WRITE, 4, 45)).status).toBe(ERRNO.EPERM);
    expect((await io(WRITE, 6, 66)).status).toBe(0);
  });
});
