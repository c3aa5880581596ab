/** The block device contract as tests: every device runs them all. What a device cannot do by its own
 *  account is skipped; what it says that it can do must work. */

import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { DISCARD, FAST_ZERO, FLUSH, FUA, NO_HOLE, READ, WRITE, WRITE_ZEROES, runBio } from '../../src/block/bio.ts';
import type { Bio, BioOwner, BioPool, Op } from '../../src/block/bio.ts';
import type { BlockDevice } from '../../src/block/device.ts';
import type { Reactor } from '../../src/io/reactor.ts';
import { ERRNO } from '../../src/util/errors.ts';
import { Prng } from '../../src/util/prng.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { isZero } from '../../src/util/zeroes.ts';

/** Bytes of the devices under test; a device whose blocks allow it may be a sector smaller. */
export const CONTRACT_SIZE = 3 * MIB;

export interface DeviceUnderTest {
  readonly device: BlockDevice;
  readonly reactor: Reactor;
  readonly pool: BioPool;
  /** What the device reads as at first; zeros by default. */
  readonly content?: Uint8Array;
  /** Closes the reactor and all but the device, and checks that nothing is held. */
  finish(): Promise<void>;
}

function deviceContract(open: () => Promise<DeviceUnderTest>): void {
  let test: DeviceUnderTest;
  let device: BlockDevice;
  let block: number;
  let at: number;
  const length = 2 * MIB;

  beforeEach(async () => {
    test = await open();
    device = test.device;
    block = device.logicalBlockSize;
    at = test.reactor.arena.allocate(length);
    expect(at).toBeGreaterThanOrEqual(0);
  });
  afterEach(async () => {
    test.reactor.arena.release(at);
    expect(test.pool.lent).toBe(0);
    await device.close();
    await device.close();
    await test.finish();
  });

  const run = (op: Op, offset: number, bytes: number, flags = 0, place = at): Promise<number> =>
    runBio(test.pool, device, { op, offset, length: bytes, at: place, flags });
  const memory = (bytes: number, place = at): Uint8Array => test.reactor.arena.bytes.subarray(place, place + bytes);
  const contentAt = async (offset: number, bytes: number): Promise<Uint8Array> => {
    memory(bytes).fill(0xdb);
    expect(await run(READ, offset, bytes)).toBe(0);
    return memory(bytes).slice();
  };
  const fill = async (offset: number, bytes: number, value: number, flags = 0): Promise<void> => {
    memory(bytes).fill(value);
    expect(await run(WRITE, offset, bytes, flags)).toBe(0);
  };
  const wanted = (): Uint8Array => test.content?.slice() ?? new Uint8Array(device.size);

  it('has whole blocks', () => {
    expect(block).toBeGreaterThanOrEqual(512);
    expect(device.size % block).toBe(0);
    expect(device.physicalBlockSize % block).toBe(0);
  });

  it('reads what was written, in the first and in the last block', async () => {
    for (const offset of [0, device.size - block]) {
      await fill(offset, block, 0xa5);
      expect((await contentAt(offset, block)).every((byte) => byte === 0xa5)).toBe(true);
    }
    const model = wanted();
    const before = await contentAt(block, block);
    expect(before).toEqual(model.subarray(block, 2 * block));
  });

  it('refuses what lies outside, and changes nothing', async () => {
    expect(await run(READ, device.size, block)).toBe(ERRNO.EINVAL);
    expect(await run(READ, device.size - block, 2 * block)).toBe(ERRNO.EINVAL);
    expect(await run(READ, 0, 0)).toBe(ERRNO.EINVAL);
    for (const op of [WRITE, DISCARD, WRITE_ZEROES] as const) {
      expect(await run(op, device.size - block, 2 * block)).toBe(ERRNO.ENOSPC);
    }
    expect(await contentAt(device.size - block, block)).toEqual(wanted().subarray(device.size - block));
  });

  it('moves large bios', async () => {
    for (let i = 0; i < length; i += 512) memory(length).fill((i >> 9) % 251, i, i + 512);
    const data = memory(length).slice();
    expect(await run(WRITE, 7 * block, length)).toBe(0);
    expect(Buffer.from(await contentAt(7 * block, length)).equals(data)).toBe(true);
  });

  it('takes data at any place in memory', async () => {
    for (const shift of [4, 28, 512, 1000]) {
      new Prng(shift).fill(memory(200 * KIB, at + shift));
      const data = memory(200 * KIB, at + shift).slice();
      expect(await run(WRITE, 64 * KIB, 200 * KIB, 0, at + shift)).toBe(0);
      memory(length).fill(0);
      expect(await run(READ, 64 * KIB, 200 * KIB, 0, at + shift)).toBe(0);
      expect(Buffer.from(memory(200 * KIB, at + shift)).equals(data)).toBe(true);
      expect(test.reactor.arena.bytes[at + shift - 1]).toBe(0);
      expect(test.reactor.arena.bytes[at + shift + 200 * KIB]).toBe(0);
    }
  });

  it('flushes, and takes FUA on every change', async () => {
    await fill(0, block, 1, FUA);
    if (device.capabilities.writeZeroes) expect(await run(WRITE_ZEROES, 0, block, FUA)).toBe(0);
    if (device.capabilities.discard) expect(await run(DISCARD, 0, block, FUA)).toBe(0);
    expect(await run(FLUSH, 0, 0)).toBe(0);
  });

  it('zeroes with every combination of flags', async () => {
    if (!device.capabilities.writeZeroes) return;
    const bytes = 64 * KIB;
    for (const flags of [0, NO_HOLE, FAST_ZERO, FAST_ZERO | NO_HOLE, NO_HOLE | FUA]) {
      await fill(0, 3 * bytes, 0xff);
      const status = await run(WRITE_ZEROES, bytes, bytes, flags);
      const mayFail = (flags & FAST_ZERO) !== 0 && (!device.capabilities.fastZero || (flags & NO_HOLE) !== 0);
      expect(mayFail ? [0, ERRNO.EOPNOTSUPP] : [0]).toContain(status);
      const content = await contentAt(0, 3 * bytes);
      expect(content.subarray(0, bytes).every((byte) => byte === 0xff)).toBe(true);
      expect(content.subarray(bytes, 2 * bytes).every((byte) => byte === (status === 0 ? 0 : 0xff))).toBe(true);
      expect(content.subarray(2 * bytes).every((byte) => byte === 0xff)).toBe(true);
    }
  });

  it('zeroes the whole device', async () => {
    if (!device.capabilities.writeZeroes) return;
    await fill(0, MIB, 0xff);
    await fill(device.size - block, block, 0xff);
    expect(await run(WRITE_ZEROES, 0, device.size)).toBe(0);
    for (let offset = 0; offset < device.size; offset += length) {
      expect(isZero(await contentAt(offset, Math.min(length, device.size - offset)))).toBe(true);
    }
  });

  it('gives extents that cover the range and are true', async () => {
    await fill(0, MIB, 0x11);
    if (device.capabilities.writeZeroes) expect(await run(WRITE_ZEROES, 128 * KIB, 256 * KIB)).toBe(0);
    for (const [from, to] of [
      [0, device.size],
      [256 * KIB, 512 * KIB],
      [device.size - block, device.size],
    ] as const) {
      let offset: number = from;
      while (offset < to) {
        const list = await device.extents(offset, to - offset);
        expect(list.length).toBeGreaterThan(0);
        for (const extent of list) {
          expect(extent.length).toBeGreaterThan(0);
          if (extent.hole) expect(extent.zero).toBe(true);
          const probe = Math.min(extent.length, length);
          if (extent.zero) expect(isZero(await contentAt(offset, probe))).toBe(true);
          offset += extent.length;
        }
        expect(offset).toBeLessThanOrEqual(to);
      }
    }
  });

  it('runs long chains of bios without recursion', async () => {
    let left = 6000;
    await new Promise<void>((resolve) => {
      const owner: BioOwner = {
        bioEnded(bio: Bio) {
          test.pool.put(bio);
          if (bio.status !== 0 || --left === 0) resolve();
          else device.submit(test.pool.get(READ, 0, block, at, 0, owner));
        },
      };
      device.submit(test.pool.get(READ, 0, block, at, 0, owner));
    });
    expect(left).toBe(0);
  });

  it('keeps to a plain model under random concurrent changes', async () => {
    const seed = Number(process.env['BLKSNAP_SEED'] ?? Date.now() % 2 ** 32);
    const random = new Prng(seed);
    const model = wanted();
    const slots = 16;
    const slotBytes = length / slots;
    const ops: Op[] = [WRITE, WRITE, WRITE, READ];
    if (device.capabilities.writeZeroes) ops.push(WRITE_ZEROES);
    if (device.capabilities.writeZeroes && device.capabilities.discard) ops.push(DISCARD);
    // Each worker has its own part of the device in interleaved blocks of odd size, so that chunks are shared.
    const part = 3 * block;
    const worker = async (index: number): Promise<void> => {
      for (let i = 0; i < 40; i++) {
        const piece = random.below(Math.floor(device.size / (part * slots))) * slots + index;
        const offset = piece * part + random.below(3) * block;
        const bytes = (1 + random.below(3 - (offset % part) / block)) * block;
        const op = ops[random.below(ops.length)]!;
        const place = at + index * slotBytes;
        if (op === WRITE) random.fill(memory(bytes, place));
        const data = memory(bytes, place).slice();
        expect(await run(op, offset, bytes, random.chance(0.1) ? FUA : 0, place), `seed ${seed}`).toBe(0);
        if (op === READ) {
          expect(Buffer.from(memory(bytes, place)).equals(model.subarray(offset, offset + bytes)), `seed ${seed}`).toBe(
            true,
          );
        } else if (op === WRITE) model.set(data, offset);
        // A discard leaves anything behind: made certain by zeroing.
        else {
          if (op === DISCARD) expect(await run(WRITE_ZEROES, offset, bytes)).toBe(0);
          model.fill(0, offset, offset + bytes);
        }
      }
    };
    await Promise.all(Array.from({ length: slots }, (_, index) => worker(index)));
    for (let offset = 0; offset < device.size; offset += length) {
      const bytes = Math.min(length, device.size - offset);
      expect(
        Buffer.from(await contentAt(offset, bytes)).equals(model.subarray(offset, offset + bytes)),
        `seed ${seed}`,
      ).toBe(true);
    }
  });
}

/** For suites that run the contract on several devices. `missing` says what the machine lacks for it, if anything. */
export function describeDevice(name: string, open: () => Promise<DeviceUnderTest>, missing = ''): void {
  describe(name, () => {
    if (missing === '') deviceContract(open);
    else it('keeps the device contract', (context) => context.skip(missing));
  });
}
