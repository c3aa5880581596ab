/** What the device contract does not say of an overlay: whose data is whose, and what it costs. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { openReactor } from '../io/open.ts';
import type { Reactor } from '../io/reactor.ts';
import { ERRNO } from '../util/errors.ts';
import { KIB, MIB } from '../util/units.ts';
import { BioPool, DISCARD, READ, WRITE, WRITE_ZEROES, runBio } from './bio.ts';
import type { Bio, Op } from './bio.ts';
import type { BlockDevice } from './device.ts';
import { MemoryDevice } from './memory-device.ts';
import { OVERLAY_CHUNK_BYTES, OverlayDevice } from './overlay-device.ts';
import { openOverlayStorage } from './overlay-storage.ts';

const SIZE = 2 * MIB + 512;
const CHUNK = OVERLAY_CHUNK_BYTES;

/** Counts reads, and holds or fails bios on demand. */
class WatchedDevice extends MemoryDevice {
  readBytes = 0;
  failWith = 0;
  readonly held: Bio[] = [];
  holding = false;

  override submit(bio: Bio): void {
    if (bio.op === READ) this.readBytes += bio.length;
    if (this.failWith !== 0) bio.end(this.failWith);
    else if (this.holding) this.held.push(bio);
    else super.submit(bio);
  }
  release(): void {
    this.holding = false;
    for (const bio of this.held.splice(0)) super.submit(bio);
  }
}

let reactor: Reactor;
let pool: BioPool;
let base: WatchedDevice;
let storage: WatchedDevice;
let overlay: OverlayDevice;
let at: number;

beforeEach(async () => {
  reactor = await openReactor({ driver: 'portable', arenaBytes: 8 * MIB });
  pool = new BioPool();
  base = new WatchedDevice('base', SIZE, reactor.arena, { readOnly: true });
  for (let i = 0; i < SIZE; i++) base.bytes[i] = 1 + ((i >> 9) % 250);
  storage = new WatchedDevice('storage', SIZE, reactor.arena);
  overlay = new OverlayDevice('overlay', { base, storage, pool, arena: reactor.arena });
  at = reactor.arena.allocate(MIB);
});
afterEach(async () => {
  reactor.arena.release(at);
  await overlay.close();
  expect([pool.lent, reactor.arena.lentBytes]).toEqual([0, 0]);
  await reactor.close();
});

const run = (op: Op, offset: number, length: number, device: BlockDevice = overlay): Promise<number> =>
  runBio(pool, device, { op, offset, length, at });
const memory = (length: number): Uint8Array => reactor.arena.bytes.subarray(at, at + length);
const write = (offset: number, length: number, value: number): Promise<number> => {
  memory(length).fill(value);
  return run(WRITE, offset, length);
};
const read = async (offset: number, length: number): Promise<Uint8Array> => {
  expect(await run(READ, offset, length)).toBe(0);
  return memory(length).slice();
};

describe('OverlayDevice', () => {
  it('copies nothing of the base but what a partial write leaves of its chunks', async () => {
    await write(8 * CHUNK, 4 * CHUNK, 0xee);
    expect([base.readBytes, overlay.ownedBytes]).toEqual([0, 4 * CHUNK]);
    await write(20 * CHUNK + 512, 512, 0xee);
    expect([base.readBytes, overlay.ownedBytes]).toEqual([CHUNK - 512, 5 * CHUNK]);
    await write(20 * CHUNK + 2048, 512, 0xee);
    expect(base.readBytes).toBe(CHUNK - 512);
    const wanted = base.bytes
      .slice(20 * CHUNK, 21 * CHUNK)
      .fill(0xee, 512, 1024)
      .fill(0xee, 2048, 2560);
    expect(await read(20 * CHUNK, CHUNK)).toEqual(wanted);
  });

  it('leaves the base as it was', async () => {
    const before = base.bytes.slice();
    await write(512, 100 * KIB, 0xaa);
    await run(WRITE_ZEROES, 300 * KIB, 100 * KIB);
    await run(DISCARD, 500 * KIB, 3 * KIB);
    expect(Buffer.from(base.bytes).equals(before)).toBe(true);
  });

  it('does not show the base again where it was discarded', async () => {
    expect(await run(DISCARD, CHUNK + 512, 3 * CHUNK)).toBe(0);
    const wanted = base.bytes.slice(0, 6 * CHUNK).fill(0, CHUNK + 512, 4 * CHUNK + 512);
    expect(Buffer.from(await read(0, 6 * CHUNK)).equals(wanted)).toBe(true);
    await write(2 * CHUNK, 512, 7);
    expect(await run(DISCARD, 2 * CHUNK, 512)).toBe(0);
    expect(Buffer.from(await read(0, 6 * CHUNK)).equals(wanted)).toBe(true);
  });

  it('gives the op of a discard back as it came', async () => {
    let op = -1;
    await new Promise<void>((resolve) => {
      const bioEnded = (bio: Bio): void => {
        op = bio.op;
        pool.put(bio);
        resolve();
      };
      overlay.submit(pool.get(DISCARD, 0, CHUNK, 0, 0, { bioEnded }));
    });
    expect(op).toBe(DISCARD);
  });

  it('makes writes to a chunk wait while it is filled in, and reads see the base', async () => {
    base.holding = true;
    const first = write(512, 512, 1);
    const second = run(WRITE, 1024, 512);
    const third = run(WRITE, CHUNK, CHUNK); // another chunk: free to go
    expect(await third).toBe(0);
    expect(base.held.length).toBe(1);
    base.release();
    expect([await first, await second]).toEqual([0, 0]);
    const wanted = base.bytes.slice(0, CHUNK).fill(1, 512, 1536);
    expect(await read(0, CHUNK)).toEqual(wanted);
  });

  it('a chunk whose first write failed is the base still', async () => {
    storage.failWith = ERRNO.ENOSPC;
    expect(await write(512, 512, 9)).toBe(ERRNO.ENOSPC);
    expect(await write(CHUNK, CHUNK, 9)).toBe(ERRNO.ENOSPC);
    storage.failWith = 0;
    expect(overlay.ownedBytes).toBe(0);
    expect(await read(0, 2 * CHUNK)).toEqual(base.bytes.slice(0, 2 * CHUNK));
    expect(await write(512, 512, 9)).toBe(0);
    expect(await read(0, CHUNK)).toEqual(base.bytes.slice(0, CHUNK).fill(9, 512, 1024));
  });

  it('a base that cannot be read fails the partial write, not a whole one', async () => {
    base.failWith = ERRNO.EIO;
    expect(await write(512, 512, 9)).toBe(ERRNO.EIO);
    expect(await write(0, CHUNK, 9)).toBe(0);
    expect(await run(READ, 0, 2 * CHUNK)).toBe(ERRNO.EIO);
  });

  it('takes the last, short chunk', async () => {
    expect(await write(SIZE - 512, 512, 3)).toBe(0);
    expect(base.readBytes).toBe(0);
    expect(await read(SIZE - 1024, 1024)).toEqual(base.bytes.slice(SIZE - 1024).fill(3, 512));
  });

  it('fills in though the arena is lent out', async () => {
    const taken: number[] = [];
    for (let place = reactor.arena.allocate(4096); place >= 0; place = reactor.arena.allocate(4096)) taken.push(place);
    const statuses = await Promise.all(Array.from({ length: 200 }, (_, i) => run(WRITE, i * CHUNK + 512, 512)));
    expect(new Set(statuses)).toEqual(new Set([0]));
    for (const place of taken) reactor.arena.release(place);
  });
});

describe('a storage on a file system', () => {
  it('has no name, and takes space for what was written alone', async () => {
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-overlay-'));
    const size = 64 * MIB;
    const empty = new MemoryDevice('base', size, reactor.arena, { readOnly: true });
    const file = openOverlayStorage(dir, size, reactor);
    expect(fs.readdirSync(dir)).toEqual([]);
    const view = new OverlayDevice('view', { base: empty, storage: file, pool, arena: reactor.arena });
    memory(MIB).fill(5);
    expect(await run(WRITE, 10 * MIB, MIB, view)).toBe(0);
    expect(await run(WRITE_ZEROES, 0, 10 * MIB, view)).toBe(0);
    expect(await run(DISCARD, 10 * MIB + 64 * KIB, 512 * KIB, view)).toBe(0);
    const holes = (await view.extents(0, 12 * MIB))
      .filter((extent) => extent.hole)
      .reduce((sum, { length }) => sum + length, 0);
    expect(holes).toBe(10 * MIB + 512 * KIB);
    await view.close();
    fs.rmdirSync(dir);
  });

  it('says why it cannot be made', () => {
    expect(() => openOverlayStorage('/none/such', MIB, reactor)).toThrow(
      expect.objectContaining({ code: 'ENOENT' }) as Error,
    );
  });
});
