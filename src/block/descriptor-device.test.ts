/** What a healthy file system never shows: short results, interruptions, failing syncs, missing operations. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { onTmpfs } from '../io/files.ts';
import { openReactor } from '../io/open.ts';
import { ALLOCATE_PUNCH_HOLE, ALLOCATE_ZERO_RANGE } from '../io/reactor.ts';
import type { Completion, Reactor } from '../io/reactor.ts';
import { ERRNO } from '../util/errors.ts';
import { KIB, MIB } from '../util/units.ts';
import { BioPool, DISCARD, FAST_ZERO, FLUSH, FUA, NO_HOLE, READ, WRITE, WRITE_ZEROES, runBio } from './bio.ts';
import type { Op } from './bio.ts';
import type { BlockDevice } from './device.ts';
import { openDevice } from './open.ts';

const SIZE = 2 * MIB;

/** What goes wrong, until it is taken back. */
interface Faults {
  /** Reads and writes move at most so many bytes. */
  pieceBytes: number;
  /** Results of the next operations of each kind, before the real ones. */
  sync: number[];
  read: number[];
  write: number[];
  missingModes: number[];
  /** The file is worth asking for what is in the page cache. */
  asks: boolean;
}

/** The reactor, with faults between it and its user. */
function faulty(reactor: Reactor, faults: Faults, log: string[]): Reactor {
  const failing = (results: number[], completion: Completion): boolean => {
    const result = results.shift();
    if (result === undefined) return false;
    setImmediate(() => completion.complete(result));
    return true;
  };
  const overrides: Partial<Reactor> = {
    read(fd, at, length, offset, completion) {
      if (!failing(faults.read, completion)) {
        reactor.read(fd, at, Math.min(length, faults.pieceBytes), offset, completion);
      }
    },
    write(fd, at, length, offset, durable, completion) {
      log.push(durable ? 'durable write' : 'write');
      if (!failing(faults.write, completion)) {
        reactor.write(fd, at, Math.min(length, faults.pieceBytes), offset, durable, completion);
      }
    },
    readCached(fd, at, length, offset, completion) {
      if (!failing(faults.read, completion)) {
        reactor.readCached(fd, at, Math.min(length, faults.pieceBytes), offset, completion);
      }
    },
    readIfCached(fd, at, length, offset, completion) {
      log.push('ask');
      if (!failing(faults.read, completion)) {
        reactor.read(fd, at, Math.min(length, faults.pieceBytes), offset, completion);
      }
      return faults.asks;
    },
    writeCached(fd, at, length, offset, completion) {
      log.push('write');
      if (!failing(faults.write, completion)) {
        reactor.writeCached(fd, at, Math.min(length, faults.pieceBytes), offset, completion);
      }
    },
    sync(fd, completion) {
      log.push('sync');
      if (!failing(faults.sync, completion)) reactor.sync(fd, completion);
    },
    allocate(fd, mode, offset, length, completion) {
      log.push(mode === ALLOCATE_PUNCH_HOLE ? 'punch' : 'zero range');
      const missing = faults.missingModes.includes(mode) ? [-ERRNO.EOPNOTSUPP] : [];
      if (!failing(missing, completion)) reactor.allocate(fd, mode, offset, length, completion);
    },
  };
  return new Proxy(reactor, {
    get(target, key: keyof Reactor) {
      const value = overrides[key] ?? target[key];
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

let dir: string;
let reactor: Reactor;
let device: BlockDevice;
let faults: Faults;
let log: string[];
let at: number;
const pool = new BioPool();

beforeEach(async () => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-descriptor-'));
  fs.writeFileSync(path.join(dir, 'disk'), new Uint8Array(SIZE).fill(0xff));
  reactor = await openReactor({ driver: 'portable', arenaBytes: 4 * MIB });
  faults = { pieceBytes: Infinity, sync: [], read: [], write: [], missingModes: [], asks: true };
  log = [];
  device = await openDevice(path.join(dir, 'disk'), { reactor: faulty(reactor, faults, log) });
  at = reactor.arena.allocate(MIB);
});
afterEach(async () => {
  reactor.arena.release(at);
  await device.close();
  expect([pool.lent, reactor.arena.lentBytes]).toEqual([0, 0]);
  await reactor.close();
  fs.rmSync(dir, { recursive: true });
});

const run = (op: Op, offset: number, length: number, flags = 0): Promise<number> =>
  runBio(pool, device, { op, offset, length, at, flags });
const content = (): Buffer => fs.readFileSync(path.join(dir, 'disk'));

describe('reads and writes', () => {
  it('go on after short results and interruptions', async () => {
    faults.pieceBytes = 5000;
    faults.write.push(-ERRNO.EINTR);
    const memory = reactor.arena.bytes.subarray(at, at + MIB);
    for (let i = 0; i < MIB; i += 512) memory.fill((i >> 9) % 251, i, i + 512);
    const data = Buffer.from(memory);
    expect(await run(WRITE, 512, MIB)).toBe(0);
    expect(
      content()
        .subarray(512, 512 + MIB)
        .equals(data),
    ).toBe(true);
    memory.fill(0);
    faults.read.push(-ERRNO.EINTR);
    expect(await run(READ, 512, MIB)).toBe(0);
    expect(data.equals(memory)).toBe(true);
  });

  it('end with the error that stopped them', async () => {
    faults.read.push(-ERRNO.EIO);
    expect(await run(READ, 0, 4096)).toBe(ERRNO.EIO);
    faults.write.push(-ERRNO.ENOSPC);
    expect(await run(WRITE, 0, 4096)).toBe(ERRNO.ENOSPC);
    faults.write.push(0);
    expect(await run(WRITE, 0, 4096)).toBe(ERRNO.EIO);
    expect(await run(FLUSH, 0, 0)).toBe(0);
  });
});

describe('reads', () => {
  it('ask for what is in the page cache until the file turns out not to be worth it', async (context) => {
    context.skip(onTmpfs(dir), 'needs a file system on a disk: TMPDIR is in memory');
    for (const asks of [true, true, false, true]) {
      faults.asks = asks;
      expect(await run(READ, 4096, 4096)).toBe(0);
      expect(reactor.arena.bytes[at]).toBe(0xff);
    }
    expect(log).toEqual(['ask', 'ask', 'ask']);
  });

  it('past the page cache do not ask for what is in it', async () => {
    fs.copyFileSync(path.join(dir, 'disk'), path.join(dir, 'direct'));
    const direct = await openDevice(path.join(dir, 'direct'), { reactor: faulty(reactor, faults, log), direct: true });
    const place = reactor.arena.allocate(8 * KIB);
    const aligned = Math.ceil(place / 4096) * 4096;
    expect(await runBio(pool, direct, { op: READ, offset: 0, length: 4096, at: aligned })).toBe(0);
    expect([reactor.arena.bytes[aligned], log]).toEqual([0xff, []]);
    reactor.arena.release(place);
    await direct.close();
  });
});

describe('a failed sync', () => {
  it('fails every later flush and FUA, for what was lost stays lost', async () => {
    faults.sync.push(-ERRNO.EIO);
    expect(await run(FLUSH, 0, 0)).toBe(ERRNO.EIO);
    expect(await run(FLUSH, 0, 0)).toBe(ERRNO.EIO);
    expect(await run(WRITE, 0, 4096, FUA)).toBe(ERRNO.EIO);
    expect(await run(DISCARD, 0, 4096, FUA)).toBe(ERRNO.EIO);
    expect(await run(WRITE, 0, 4096)).toBe(0);
    expect(await run(READ, 0, 4096)).toBe(0);
  });

  it('of a FUA write counts too; a full disk does not', async () => {
    faults.write.push(-ERRNO.ENOSPC);
    expect(await run(WRITE, 0, 4096, FUA)).toBe(ERRNO.ENOSPC);
    expect(await run(FLUSH, 0, 0)).toBe(0);
    faults.write.push(-ERRNO.EIO);
    expect(await run(WRITE, 0, 4096, FUA)).toBe(ERRNO.EIO);
    expect(await run(FLUSH, 0, 0)).toBe(ERRNO.EIO);
  });

  it('after an interruption is tried again', async () => {
    faults.sync.push(-ERRNO.EINTR);
    expect(await run(FLUSH, 0, 0)).toBe(0);
    expect(log).toEqual(['sync', 'sync']);
  });
});

describe('writeZeroes', () => {
  const zeroed = (): boolean => {
    const [before, zeros, after] = [
      content().subarray(0, 4096),
      content().subarray(4096, MIB),
      content().subarray(MIB),
    ];
    return (
      before.every((byte) => byte === 0xff) && zeros.every((byte) => byte === 0) && after.every((byte) => byte === 0xff)
    );
  };
  const zero = (flags = 0): Promise<number> => run(WRITE_ZEROES, 4096, MIB - 4096, flags);

  it('punches a hole where it may', async () => {
    expect(await zero()).toBe(0);
    expect([log, zeroed()]).toEqual([['punch'], true]);
  });

  it('keeps the space where it must', async () => {
    expect(await zero(NO_HOLE)).toBe(0);
    expect([log, zeroed()]).toEqual([['zero range'], true]);
  });

  it('goes down the ladder, each missing step once', async () => {
    faults.missingModes.push(ALLOCATE_PUNCH_HOLE, ALLOCATE_ZERO_RANGE);
    expect(await zero()).toBe(0);
    expect([log.slice(0, 3), zeroed()]).toEqual([['punch', 'zero range', 'write'], true]);
    log.length = 0;
    expect(await zero()).toBe(0);
    expect(new Set(log)).toEqual(new Set(['write']));
  });

  it('writes no zeros where it must be fast', async () => {
    faults.missingModes.push(ALLOCATE_PUNCH_HOLE, ALLOCATE_ZERO_RANGE);
    expect(await zero(FAST_ZERO)).toBe(ERRNO.EOPNOTSUPP);
    expect([log, zeroed()]).toEqual([['punch', 'zero range'], false]);
  });

  it('with FUA ends with a sync, whatever the way', async () => {
    expect(await zero(FUA)).toBe(0);
    expect(await zero(FUA | NO_HOLE)).toBe(0);
    faults.missingModes.push(ALLOCATE_ZERO_RANGE);
    expect(await zero(FUA | NO_HOLE)).toBe(0);
    expect(log.filter((step) => step === 'sync').length).toBe(3);
    expect(log.at(-1)).toBe('sync');
  });

  it('waits for arena memory when it has to write zeros', async () => {
    faults.missingModes.push(ALLOCATE_PUNCH_HOLE, ALLOCATE_ZERO_RANGE);
    faults.pieceBytes = 64 * KIB;
    const { arena } = reactor;
    const taken: number[] = [];
    for (let place = arena.allocate(4096); place >= 0; place = arena.allocate(4096)) taken.push(place);
    let ended = 0;
    const both = Promise.all([zero().finally(() => ended++), zero(NO_HOLE).finally(() => ended++)]);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(ended).toBe(0);
    for (const place of taken) arena.release(place);
    expect(await both).toEqual([0, 0]);
    expect(zeroed()).toBe(true);
  });
});
