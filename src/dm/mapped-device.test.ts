/** Tables against a plain array, and other tables while bios are under way. */

import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MappedWorld } from '../../test/mapped.ts';
import { FLUSH, READ, WRITE, WRITE_ZEROES } from '../block/bio.ts';
import type { Bio } from '../block/bio.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { ERRNO } from '../util/errors.ts';
import { Prng } from '../util/prng.ts';

let world: MappedWorld;
beforeEach(async () => {
  world = await MappedWorld.open();
});
afterEach(() => world.close());

/** Ends bios later, in any order. */
class SlowDevice extends MemoryDevice {
  readonly #random = new Prng(5);
  override submit(bio: Bio): void {
    const owner = { complete: (): void => super.submit(bio) };
    this.#due(owner);
  }
  #due(completion: { complete(): void }): void {
    setTimeout(() => completion.complete(), this.#random.below(3));
  }
}

function slow(name: string, size: number): SlowDevice {
  const device = new SlowDevice(name, size, world.reactor.arena);
  world.devices.set(name, device);
  return device;
}

describe('any table', () => {
  const SECTORS = 64;
  /** Pieces of a table; each takes its own part of device a, and of b. */
  const piece = fc.record({
    length: fc.integer({ min: 1, max: 12 }),
    kind: fc.constantFrom('linear', 'striped', 'zero', 'error', 'mirror', 'dust'),
  });
  const io = fc.record({
    op: fc.constantFrom(READ, WRITE, WRITE_ZEROES),
    offset: fc.nat({ max: SECTORS - 1 }),
    length: fc.integer({ min: 1, max: 24 }),
  });

  function tableOf(pieces: ReadonlyArray<{ length: number; kind: string }>): { text: string; states: string[] } {
    const lines: string[] = [];
    const states: string[] = [];
    let start = 0;
    for (const { length: wanted, kind } of pieces) {
      const length = Math.min(kind === 'striped' ? 4 * Math.ceil(wanted / 4) : wanted, SECTORS - start);
      if (length <= 0) break;
      const real = kind === 'striped' && length % 4 !== 0 ? 'linear' : kind;
      const args: Record<string, string> = {
        linear: `a ${start}`,
        striped: `2 2 a ${start} b ${start}`,
        zero: '',
        error: '',
        mirror: `core 2 4 nosync 2 a ${start} b ${start}`,
        dust: `b ${start} 512`,
      };
      lines.push(`${start} ${length} ${real} ${args[real]}`);
      for (let i = 0; i < length; i++) states.push(real === 'zero' || real === 'error' ? real : 'data');
      start += length;
    }
    return { text: lines.join('\n'), states };
  }

  it('keeps to a plain array', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(piece, { minLength: 1, maxLength: 8 }),
        fc.array(io, { maxLength: 30 }),
        async (pieces, ios) => {
          world.memory('a', SECTORS * 512);
          world.memory('b', SECTORS * 512);
          const { text, states } = tableOf(pieces);
          const device = await world.map(text);
          const model = Buffer.alloc(states.length * 512);
          for (const [index, { op, offset, length }] of ios.entries()) {
            const touched = states.slice(offset, offset + length);
            const outside = offset + length > states.length;
            const fails = outside
              ? op === READ
                ? ERRNO.EINVAL
                : ERRNO.ENOSPC
              : touched.includes('error')
                ? ERRNO.EIO
                : 0;
            if (op === READ) {
              const data = await world.read(device, offset * 512, length * 512);
              expect(data).toEqual(fails === 0 ? model.subarray(offset * 512, (offset + length) * 512) : fails);
              continue;
            }
            const value = op === WRITE ? index + 1 : 0;
            const bytes = Buffer.alloc(length * 512, value);
            const status =
              op === WRITE
                ? await world.write(device, offset * 512, bytes)
                : await world.run(device, op, offset * 512, length * 512);
            expect(status).toBe(fails);
            if (outside) continue;
            for (let i = 0; i < length; i++) {
              if (touched[i] === 'data') model.fill(value, (offset + i) * 512, (offset + i + 1) * 512);
            }
          }
          await device.close();
        },
      ),
      { numRuns: 200 },
    );
  });
});

describe('another table', () => {
  it('moves a device that is in use from place to place, and loses and misdirects nothing', async () => {
    const seed = Number(process.env['BLKSNAP_SEED'] ?? Date.now() % 2 ** 32);
    const random = new Prng(seed);
    const [sectors, workers] = [256, 16];
    for (const name of ['a', 'b']) slow(name, 512 * sectors);
    const device = await world.map(`0 ${sectors} linear a 0`);
    const model = Buffer.alloc(512 * sectors);
    let going = true;
    // Each worker has its own sectors, and knows what it must read there.
    const worker = async (index: number): Promise<void> => {
      while (going) {
        const sector = random.below(sectors / workers) * workers + index;
        const data = Buffer.alloc(512, random.below(255) + 1);
        expect(await world.write(device, sector * 512, data), `seed ${seed}`).toBe(0);
        data.copy(model, sector * 512);
        expect(await world.read(device, sector * 512, 512), `seed ${seed}`).toEqual(data);
        if (random.chance(0.1)) expect(await world.run(device, FLUSH)).toBe(0);
      }
    };
    const working = Promise.all(Array.from({ length: workers }, (_, index) => worker(index)));
    const change = async (table: string): Promise<void> => {
      await device.load(await world.mapping(`0 ${sectors} ${table}`));
      if (random.chance(0.5)) {
        await device.suspend();
        expect(device.inFlight).toBe(0);
        await new Promise((resolve) => setTimeout(resolve, 3));
        expect(device.inFlight).toBe(0);
      }
      await device.resume();
    };
    let [from, to] = ['a', 'b'];
    for (let i = 0; i < 6; i++) {
      await change(`mirror core 1 16 2 ${from} 0 ${to} 0`);
      await expect.poll(() => device.status()[0], { interval: 2 }).toContain(' 16/16 1 AA ');
      await change(`linear ${to} 0`);
      [from, to] = [to, from];
    }
    going = false;
    await working;
    expect(Buffer.from((world.devices.get(from) as MemoryDevice).bytes).equals(model), `seed ${seed}`).toBe(true);
  });

  it('comes in the middle of a copy', async () => {
    world.memory('a', 64 * 512).bytes.fill(1);
    slow('b', 64 * 512);
    const device = await world.map('0 64 mirror core 1 1 2 a 0 b 0');
    await device.load(await world.mapping('0 64 linear a 0'));
    await device.resume();
    expect(world.lent).toBe(1);
    expect(await world.read(device, 0, 512)).toEqual(Buffer.alloc(512, 1));
  });

  it('waits, inactive, until the device is resumed', async () => {
    world.memory('a', 4096).bytes.fill(1);
    world.memory('b', 4096).bytes.fill(2);
    const device = await world.map('0 8 linear a 0');
    await device.load(await world.mapping('0 8 zero'));
    await device.load(await world.mapping('0 8 linear b 0'));
    expect([device.hasInactive, device.table('inactive'), device.table()]).toEqual([
      true,
      ['0 8 linear b 0'],
      ['0 8 linear a 0'],
    ]);
    expect(await world.read(device, 0, 512)).toEqual(Buffer.alloc(512, 1));
    await device.resume();
    expect(await world.read(device, 0, 512)).toEqual(Buffer.alloc(512, 2));
    expect([device.hasInactive, device.table('inactive'), world.lent]).toEqual([false, [], 1]);
    await device.load(await world.mapping('0 8 zero'));
    await device.clear();
    await device.resume();
    expect(device.table()).toEqual(['0 8 linear b 0']);
  });

  it('lets held bios go in their order', async () => {
    const a = world.memory('a', 4096);
    const device = await world.map('0 8 linear a 0');
    await device.suspend();
    const writes = Array.from({ length: 50 }, (_, i) => world.write(device, 0, Buffer.alloc(512, i + 1)));
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(a.bytes[0]).toBe(0);
    await device.resume();
    expect(new Set(await Promise.all(writes))).toEqual(new Set([0]));
    expect(a.bytes[0]).toBe(50);
  });

  it('must fit the device', async () => {
    world.memory('a', 8192);
    const device = await world.map('0 8 linear a 0');
    const readOnly = new MemoryDevice('r', 4096, world.reactor.arena, { readOnly: true });
    world.devices.set('r', readOnly);
    await expect(device.load(await world.mapping('0 16 linear a 0'))).rejects.toThrow(/for 16 sectors, want 8/);
    await expect(device.load(await world.mapping('0 8 linear r 0'))).rejects.toThrow(/read-only/);
    expect([device.hasInactive, world.lent]).toEqual([false, 1]);
  });

  it('is not waited for by bios of a device that is given up', async () => {
    world.memory('a', 4096);
    const device = await world.map('0 8 linear a 0');
    await device.suspend();
    const write = world.write(device, 0, Buffer.alloc(512, 1));
    device.abandon();
    expect(await write).toBe(ERRNO.ESHUTDOWN);
  });
});
