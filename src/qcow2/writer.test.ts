import fs from 'node:fs';
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import type { Reactor } from '../io/reactor.ts';
import { RangeChecksums } from '../util/checksum.ts';
import { ERRNO } from '../util/errors.ts';
import { Prng } from '../util/prng.ts';
import { Bench } from '../../test/qcow2-images.ts';
import { Qcow2Writer } from './writer.ts';
import type { Qcow2WriterOptions } from './writer.ts';

const CLUSTER = 65_536;

let bench: Bench;
let at: number;
let file: string;
beforeAll(async () => {
  bench = await Bench.open();
  at = bench.reactor.arena.allocate(4 * CLUSTER);
  bench.reactor.arena.bytes.fill(0x42, at, at + 4 * CLUSTER);
});
beforeEach(() => {
  file = bench.path('new.qcow2');
  fs.rmSync(file, { force: true });
});
afterAll(async () => {
  bench.reactor.arena.release(at);
  await bench.close();
});

function create(options: Partial<Qcow2WriterOptions> = {}): Promise<Qcow2Writer> {
  return Qcow2Writer.create(file, { reactor: bench.reactor, size: 8 * CLUSTER + 512, ...options });
}

function openDescriptors(): number {
  return process.platform === 'linux' ? fs.readdirSync('/proc/self/fd').length : 0;
}

test('nobody else can read the file, and an existing one is not touched', async () => {
  const writer = await create();
  expect(fs.statSync(file).mode & 0o777).toBe(0o600);
  await expect(create()).rejects.toMatchObject({
    code: 'EEXIST',
    message: expect.stringMatching(/Cannot create ".*new.qcow2"/),
  });
  await writer.finish();
  expect((await bench.readImage(file)).equals(Buffer.alloc(8 * CLUSTER + 512))).toBe(true);
});

test('neighbours in memory that are stored at once go in one write, and are written back before the end', async () => {
  const { reactor } = bench;
  const write = vi.spyOn(reactor, 'write');
  const writeback = vi.spyOn(reactor, 'beginWriteback');
  const writer = await create({ size: 1024 * CLUSTER });
  try {
    const stored = [7, 3, 900].map((cluster, index) => writer.write(cluster * CLUSTER, at + index * CLUSTER, CLUSTER));
    stored.push(writer.write(5 * CLUSTER, at, CLUSTER));
    await Promise.all(stored);
    expect(write.mock.calls.map(([, place, length, offset]) => [place - at, length, offset])).toEqual([
      [0, 3 * CLUSTER, CLUSTER],
      [0, CLUSTER, 4 * CLUSTER],
    ]);
    for (let cluster = 8; cluster < 500; cluster++) await writer.write(cluster * CLUSTER, at, CLUSTER);
    // Every byte, those on their way at the time once more.
    const ends = writeback.mock.calls.map(([, from, length]) => [from, from + length]);
    expect(ends).toEqual([
      [0, 128 * CLUSTER],
      [0, 256 * CLUSTER],
      [128 * CLUSTER, 384 * CLUSTER],
    ]);
    const { fileBytes, checksums } = await writer.finish();
    const whole = new RangeChecksums();
    whole.update(fs.readFileSync(file));
    expect(checksums.checksums).toEqual(whole.finish());
    expect(fs.statSync(file).size).toBe(fileBytes);
  } finally {
    await writer.abort();
    vi.restoreAllMocks();
  }
});

test('an unfinished file is no image', async () => {
  const writer = await create();
  await writer.write(0, at, 4 * CLUSTER);
  await expect(bench.readImage(file)).rejects.toThrow(/does not start with a qcow2 header/);
  await writer.abort();
});

describe.each(['none', 'zlib'] as const)('abort with compression %s', (compression) => {
  test('in the middle of writes gives everything back', async () => {
    const before = openDescriptors();
    const writer = await create({ compression, size: 4096 * CLUSTER });
    const writes = Array.from({ length: 200 }, (_, i) => writer.write(i * 4 * CLUSTER, at, 4 * CLUSTER));
    const ended = Promise.allSettled(writes);
    await writer.abort();
    await writer.abort();
    await ended;
    expect(fs.existsSync(file)).toBe(false);
    await expect(writer.write(0, at, CLUSTER)).rejects.toMatchObject({ code: 'EBADF' });
    await expect(writer.finish()).rejects.toMatchObject({ code: 'EBADF' });
    expect(openDescriptors()).toBe(before);
  });
});

/** The reactor on a file system that is full after `bytes`. */
function full(reactor: Reactor, bytes: number): Reactor {
  let left = bytes;
  const write: Reactor['write'] = (fd, from, length, offset, durable, completion) => {
    left -= length;
    if (left < 0) queueMicrotask(() => completion.complete(-ERRNO.ENOSPC));
    else reactor.write(fd, from, length, offset, durable, completion);
  };
  return new Proxy(reactor, {
    get(target, key) {
      if (key === 'write') return write;
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === 'function' ? (value.bind(target) as unknown) : value;
    },
  });
}

test.each(['none', 'zlib'] as const)(
  'a full disk fails what comes after it, and leaves no file (%s)',
  async (compression) => {
    const before = openDescriptors();
    // Enough for nothing, for some data, for all the data but no tables, for all but the header.
    for (const room of compression === 'none' ? [0, 1, 8, 10, 12] : [0, 1]) {
      const writer = await create({ compression, reactor: full(bench.reactor, room * CLUSTER), size: 9 * CLUSTER });
      const writes = [writer.write(0, at, 4 * CLUSTER), writer.write(4 * CLUSTER, at, 4 * CLUSTER)];
      const outcomes = await Promise.allSettled(writes);
      for (const outcome of outcomes) {
        if (outcome.status === 'rejected') expect(outcome.reason).toMatchObject({ code: 'ENOSPC' });
      }
      await expect(writer.finish(), `room for ${room} clusters`).rejects.toMatchObject({
        code: 'ENOSPC',
        message: expect.stringMatching(/Cannot write ".*new.qcow2" at \d+: ENOSPC/),
      });
      await writer.abort();
      expect(fs.existsSync(file)).toBe(false);
    }
    expect(openDescriptors()).toBe(before);
  },
);

test.each(['none', 'zlib'] as const)(
  'checksums are those of every range of the finished file (%s)',
  async (compression) => {
    const clusters = 200;
    const writer = await create({ compression, size: (clusters + 1) * CLUSTER });
    const random = new Prng(clusters);
    const bytes = bench.reactor.arena.bytes.subarray(at, at + CLUSTER);
    const piece = Uint8Array.from({ length: CLUSTER }, () => random.u32());
    for (let cluster = 0; cluster < clusters; cluster++) {
      if (cluster % 5 === 0) bytes.fill(cluster);
      else bytes.set(piece);
      await writer.write(cluster * CLUSTER, at, CLUSTER);
    }
    const { checksums, fileBytes } = await writer.finish();
    const sums = new RangeChecksums(checksums.rangeBytes);
    sums.update(fs.readFileSync(file));
    expect(fileBytes).toBeGreaterThan(2 * checksums.rangeBytes);
    expect(checksums.checksums).toEqual(sums.finish());
    bytes.fill(0x42);
  },
);

test('a short last cluster in the middle of the file counts as padded', async () => {
  const size = 100 * CLUSTER + 512;
  const writer = await create({ size });
  for (const range of [0, 1]) {
    for (let i = 0; i < 12; i++) await writer.write((range * 48 + i * 4) * CLUSTER, at, 4 * CLUSTER);
    if (range === 0) continue;
    await writer.write(100 * CLUSTER, at, 512);
    await writer.write(96 * CLUSTER, at, 4 * CLUSTER);
  }
  const { checksums } = await writer.finish();
  const sums = new RangeChecksums(checksums.rangeBytes);
  sums.update(fs.readFileSync(file));
  expect(checksums.checksums).toEqual(sums.finish());
});

test('finish waits for no one', async () => {
  const writer = await create();
  const writing = writer.write(0, at, CLUSTER);
  await expect(writer.finish()).rejects.toMatchObject({ code: 'EBUSY' });
  await writing;
  const { fileBytes, dataBytes } = await writer.finish();
  expect(dataBytes).toBe(CLUSTER);
  expect(fileBytes).toBe(fs.statSync(file).size);
  await writer.abort();
  expect(fs.existsSync(file)).toBe(true);
});

test('a cluster is written once, in place', async () => {
  const writer = await create({ backing: { name: 'x', format: 'raw' } });
  await writer.write(CLUSTER, at, 2 * CLUSTER);
  await writer.zero(0, CLUSTER);
  await expect(writer.write(0, at, CLUSTER)).rejects.toMatchObject({
    code: 'EEXIST',
    message: expect.stringMatching(/at 0: /),
  });
  await expect(writer.write(2 * CLUSTER, at, CLUSTER)).rejects.toMatchObject({ code: 'EEXIST' });
  await expect(writer.zero(0, 4 * CLUSTER)).rejects.toMatchObject({ code: 'EEXIST' });
  await expect(writer.write(512, at, CLUSTER)).rejects.toMatchObject({ code: 'EINVAL' });
  await expect(writer.write(4 * CLUSTER, at, 512)).rejects.toMatchObject({ code: 'EINVAL' });
  await expect(writer.write(8 * CLUSTER, at, CLUSTER)).rejects.toMatchObject({ code: 'EINVAL' });
  await writer.write(8 * CLUSTER, at, 512);
  await writer.abort();
});

test('refuses disks and clusters that the format cannot have', async () => {
  for (const size of [0, -512, 1000, NaN])
    await expect(create({ size })).rejects.toThrow(/want a multiple of 512 above 0/);
  await expect(create({ size: 2 ** 54 })).rejects.toThrow(/at most 8 PiB/);
  await expect(create({ clusterBits: 8 })).rejects.toThrow(/clusters of 2\^8/);
  await expect(create({ clusterBits: 22 })).rejects.toThrow(/clusters of 2\^22/);
  await expect(create({ clusterBits: 9, size: 2 ** 40 })).rejects.toThrow(/use larger clusters/);
  await expect(create({ backing: { name: '', format: 'raw' } })).rejects.toThrow(/that name has 0 bytes/);
  expect(fs.existsSync(file)).toBe(false);
});
