/** The gate and the filter stack of a disk, and the registry of filters. */

import { beforeEach, describe, expect, it } from 'vitest';
import { Arena } from '../io/arena.ts';
import { BlksnapError, ERRNO } from '../util/errors.ts';
import { MIB } from '../util/units.ts';
import { BioPool, BioQueue, FLUSH, READ, WRITE, runBio } from './bio.ts';
import type { Bio } from './bio.ts';
import { Disk } from './disk.ts';
import { BlockFilter, FilterRegistry } from './filter.ts';
import { MemoryDevice } from './memory-device.ts';

/** A device that ends nothing by itself. */
class HeldDevice extends MemoryDevice {
  readonly held = new BioQueue();
  closed = 0;

  override submit(bio: Bio): void {
    this.held.push(bio);
  }
  /** Ends the oldest `count` bios. */
  release(count = Infinity): void {
    for (let i = 0; i < count && this.held.length > 0; i++) super.submit(this.held.shift()!);
  }
  override async close(): Promise<void> {
    this.closed++;
  }
}

class NotingFilter extends BlockFilter {
  readonly name: string;
  readonly altitude: number;
  readonly #log: string[];
  failure: BlksnapError | null = null;

  constructor(name: string, altitude: number, log: string[]) {
    super();
    this.name = name;
    this.altitude = altitude;
    this.#log = log;
  }
  submit(bio: Bio): void {
    this.#log.push(this.name);
    this.below.submit(bio);
  }
  async attach(_disk: Disk): Promise<void> {
    if (this.failure !== null) throw this.failure;
    this.#log.push(`+${this.name}`);
  }
  async detach(): Promise<void> {
    if (this.failure !== null) throw this.failure;
    this.#log.push(`-${this.name}`);
  }
  async ctl(_command: string, _payload: unknown): Promise<unknown> {
    return undefined;
  }
}

const arena = new Arena(new ArrayBuffer(MIB), 0);
const pool = new BioPool();
let device: HeldDevice;
let disk: Disk;
let log: string[];

beforeEach(() => {
  device = new HeldDevice('m', MIB, arena);
  disk = new Disk('d', device);
  log = [];
});

const submit = (offset: number, op: typeof READ | typeof WRITE = WRITE): Promise<number> =>
  runBio(pool, disk, { op, offset, length: 512, at: 0 });
const isDone = async (promise: Promise<unknown>): Promise<boolean> => {
  const open = Symbol('open');
  await new Promise((resolve) => setImmediate(resolve));
  return (await Promise.race([promise, Promise.resolve(open)])) !== open;
};

describe('the gate', () => {
  it('freeze waits for the bios on their way, and holds new ones', async () => {
    const early = submit(0);
    const frozen = disk.freeze();
    const late = submit(512);
    expect(await isDone(frozen)).toBe(false);
    expect(device.held.length).toBe(1);
    device.release();
    await frozen;
    expect(await early).toBe(0);
    expect([disk.inFlight, disk.frozen, device.held.length]).toEqual([0, true, 0]);
    disk.thaw();
    expect(device.held.length).toBe(1);
    device.release();
    expect(await late).toBe(0);
    expect(disk.inFlight).toBe(0);
  });

  it('thaw lets bios go in their order', async () => {
    await disk.freeze();
    const all = Promise.all([0, 3, 1, 2].map((block) => submit(block * 512)));
    disk.thaw();
    const order: number[] = [];
    while (device.held.length > 0) {
      order.push(device.held.peek()!.offset / 512);
      device.release(1);
    }
    expect(order).toEqual([0, 3, 1, 2]);
    await all;
  });

  it('freezes nest', async () => {
    await disk.freeze();
    await disk.freeze();
    const write = submit(0);
    disk.thaw();
    expect([disk.frozen, device.held.length]).toEqual([true, 0]);
    disk.thaw();
    expect(device.held.length).toBe(1);
    device.release();
    await write;
    expect(() => disk.thaw()).toThrow('thaw without freeze');
  });

  it('a bio submitted while held ones go is not lost', async () => {
    const order: number[] = [];
    const quick = new Disk('q', new MemoryDevice('m', MIB, arena));
    await quick.freeze();
    const owner = {
      bioEnded(bio: Bio) {
        order.push(bio.offset);
        const isFirst = bio.offset === 0;
        pool.put(bio);
        if (isFirst) quick.submit(pool.get(READ, 4096, 512, 0, 0, owner));
      },
    };
    for (const offset of [0, 512, 1024]) quick.submit(pool.get(READ, offset, 512, 0, 0, owner));
    quick.thaw();
    expect(order.toSorted((a, b) => a - b)).toEqual([0, 512, 1024, 4096]);
    expect(quick.inFlight).toBe(0);
  });

  it('a freeze from a completion holds the rest', async () => {
    await disk.freeze();
    const first = submit(0);
    const second = submit(512);
    disk.thaw();
    const refreeze = first.then(() => disk.freeze());
    device.release(1);
    await first;
    expect(await isDone(refreeze)).toBe(false);
    device.release();
    await refreeze;
    expect(await second).toBe(0);
    disk.thaw();
  });
});

describe('close', () => {
  it('waits for bios, detaches filters, closes the device once, then refuses', async () => {
    await disk.attachFilter(new NotingFilter('f', 10, log));
    const write = submit(0);
    const closing = disk.close();
    expect(await isDone(closing)).toBe(false);
    device.release();
    await closing;
    expect(await write).toBe(0);
    expect(log).toEqual(['+f', 'f', '-f']);
    await disk.close();
    expect(device.closed).toBe(1);
    expect(await submit(0)).toBe(ERRNO.ESHUTDOWN);
  });

  it('lets no bio past a filter that goes', async () => {
    await disk.attachFilter(new NotingFilter('f', 10, log));
    const early = submit(0);
    const closing = disk.close();
    const late = submit(512);
    device.release();
    await closing;
    expect([await early, await late]).toEqual([0, ERRNO.ESHUTDOWN]);
    expect(device.held.length).toBe(0);
  });

  it('twice at once is once', async () => {
    await disk.attachFilter(new NotingFilter('f', 10, log));
    await Promise.all([disk.close(), disk.close()]);
    expect(log).toEqual(['+f', '-f']);
  });

  it('fails when a filter cannot go, and the disk runs on', async () => {
    const filter = new NotingFilter('f', 10, log);
    await disk.attachFilter(filter);
    filter.failure = new BlksnapError('EBUSY', 'held');
    await expect(disk.close()).rejects.toMatchObject({ code: 'EBUSY' });
    const write = submit(0);
    device.release();
    expect(await write).toBe(0);
    expect([device.closed, disk.frozen]).toEqual([0, false]);
    filter.failure = null;
    await disk.close();
    expect(device.closed).toBe(1);
  });
});

describe('filters', () => {
  it('see bios from the highest altitude to the lowest, in whatever order they came', async () => {
    for (const altitude of [20, 30, 10]) await disk.attachFilter(new NotingFilter(`f${altitude}`, altitude, log));
    log.length = 0;
    const write = submit(0);
    device.release();
    expect(await write).toBe(0);
    expect(log).toEqual(['f30', 'f20', 'f10']);
    await disk.detachFilter(disk.filter('f20')!);
    log.length = 0;
    const read = submit(0, READ);
    device.release();
    expect(await read).toBe(0);
    expect(log).toEqual(['f30', 'f10']);
    expect(disk.filters.map((filter) => filter.name)).toEqual(['f30', 'f10']);
  });

  it('two of one altitude conflict, and the disk stays as it was', async () => {
    await disk.attachFilter(new NotingFilter('a', 10, log));
    await expect(disk.attachFilter(new NotingFilter('b', 10, log))).rejects.toMatchObject({ code: 'EBUSY' });
    expect([disk.filters.length, disk.frozen]).toEqual([1, false]);
  });

  it('whose attach fails are not there', async () => {
    const filter = new NotingFilter('a', 10, log);
    filter.failure = new BlksnapError('EINVAL', 'no');
    await expect(disk.attachFilter(filter)).rejects.toMatchObject({ code: 'EINVAL' });
    const write = submit(0);
    device.release();
    expect(await write).toBe(0);
    expect([log, disk.filters.length, disk.frozen]).toEqual([[], 0, false]);
  });

  it('attach and detach under load, losing no bio and splitting none', async () => {
    const quick = new Disk('q', new MemoryDevice('m', MIB, arena));
    let ended = 0;
    let stop = false;
    const load = (async () => {
      while (!stop) {
        const statuses = await Promise.all(
          Array.from({ length: 8 }, (_, i) => runBio(pool, quick, { op: WRITE, offset: i * 512, length: 512, at: 0 })),
        );
        expect(new Set(statuses)).toEqual(new Set([0]));
        ended += 8;
        await new Promise((resolve) => setImmediate(resolve));
      }
    })();
    for (let i = 0; i < 50; i++) {
      const [high, low] = [new NotingFilter('high', 20, log), new NotingFilter('low', 10, log)];
      await quick.attachFilter(high);
      await quick.attachFilter(low);
      await new Promise((resolve) => setImmediate(resolve));
      await quick.detachFilter(high);
      await quick.detachFilter(low);
    }
    stop = true;
    await load;
    expect(ended).toBeGreaterThan(100);
    expect([quick.inFlight, quick.filters.length, pool.lent]).toEqual([0, 0, 0]);
    expect(log.filter((entry) => entry === 'high').length).toBeGreaterThan(0);
    expect(await runBio(pool, quick, { op: FLUSH, offset: 0, length: 0 })).toBe(0);
  });

  it('two attached at once both find their place', async () => {
    await Promise.all(
      [20, 10, 30].map((altitude) => disk.attachFilter(new NotingFilter(`f${altitude}`, altitude, log))),
    );
    expect(disk.filters.map((filter) => filter.altitude)).toEqual([30, 20, 10]);
    log.length = 0;
    const write = submit(0);
    device.release();
    await write;
    expect(log).toEqual(['f30', 'f20', 'f10']);
  });
});

describe('the registry', () => {
  const registry = (): FilterRegistry => {
    const filters = new FilterRegistry();
    filters.register('note', () => new NotingFilter('note', 10, log));
    return filters;
  };

  it('knows each name once', () => {
    const filters = registry();
    expect(() => filters.register('note', () => new NotingFilter('note', 1, log))).toThrow(
      expect.objectContaining({ code: 'EEXIST' }) as Error,
    );
    expect(() => filters.unregister('other')).toThrow(expect.objectContaining({ code: 'ENOENT' }) as Error);
  });

  it('refuses unknown kinds, and one kind twice on one disk', async () => {
    const filters = registry();
    await expect(filters.attach('other', disk, {})).rejects.toMatchObject({ code: 'ENOENT' });
    await filters.attach('note', disk, {});
    await expect(filters.attach('note', disk, {})).rejects.toMatchObject({ code: 'EALREADY' });
    await expect(filters.detach('other', disk)).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('keeps a kind that is attached', async () => {
    const filters = registry();
    await filters.attach('note', disk, {});
    expect(() => filters.unregister('note')).toThrow(expect.objectContaining({ code: 'EBUSY' }) as Error);
    await filters.detach('note', disk);
    filters.unregister('note');
    await expect(filters.attach('note', disk, {})).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('lets a kind go after its disk was closed', async () => {
    const filters = registry();
    await filters.attach('note', disk, {});
    await disk.close();
    filters.unregister('note');
  });
});
