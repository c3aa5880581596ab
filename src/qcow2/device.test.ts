import fc from 'fast-check';
import fs from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { READ, runBio, WRITE } from '../block/bio.ts';
import { BlksnapError, ERRNO } from '../util/errors.ts';
import { Prng } from '../util/prng.ts';
import { Bench, contentOf } from '../../test/qcow2-images.ts';
import type { ClusterKind } from '../../test/qcow2-images.ts';
import { insideDirectory, openQcow2 } from './open.ts';

const CLUSTER = 512;
const KINDS: readonly ClusterKind[] = ['random', 'zero', 'text', 'nothing', 'text', 'random', 'random'];
const SIZE = CLUSTER * KINDS.length;

let bench: Bench;
let content: Buffer;
beforeAll(async () => {
  bench = await Bench.open();
  fs.writeFileSync(bench.path('base.raw'), Buffer.alloc(CLUSTER * 6, 7));
  content = contentOf(Buffer.alloc(SIZE, 7).fill(0, CLUSTER * 6), SIZE, CLUSTER, KINDS, new Prng(1));
});
afterAll(() => bench.close());

/** A good image over base.raw with compressed, plain, zero and no clusters, after `change`. */
async function image(name: string, change: (file: Buffer, l1: number, l2: number) => void = () => {}): Promise<string> {
  const file = bench.path(name);
  fs.rmSync(file, { force: true });
  const backing = { name: 'base.raw', format: 'raw' } as const;
  await bench.writeImage(file, { clusterBits: 9, size: SIZE, compression: 'zlib', backing }, content, KINDS);
  const bytes = fs.readFileSync(file);
  const l1 = Number(bytes.readBigUInt64BE(40));
  change(bytes, l1, Number(bytes.readBigUInt64BE(l1) & 0xff_ffff_ffff_ffffn));
  fs.writeFileSync(file, bytes);
  return file;
}

/** Status of reading each cluster. */
async function statuses(file: string): Promise<number[]> {
  const device = await openQcow2(file, bench);
  const at = bench.reactor.arena.allocate(CLUSTER);
  const result: number[] = [];
  for (let offset = 0; offset < device.size; offset += CLUSTER) {
    result.push(await runBio(bench.pool, device, { op: READ, offset, length: CLUSTER, at }));
  }
  bench.reactor.arena.release(at);
  await device.close();
  return result;
}

test("reads, tells its own extents and the chain's, and refuses to be changed", async () => {
  const file = await image('good.qcow2');
  const device = await openQcow2(file, bench);
  expect((await bench.read(device)).equals(content)).toBe(true);
  expect(await device.ownExtents(0, SIZE)).toEqual([
    { kind: 'data', length: CLUSTER },
    { kind: 'zero', length: CLUSTER },
    { kind: 'data', length: CLUSTER },
    { kind: 'unallocated', length: CLUSTER },
    { kind: 'data', length: 3 * CLUSTER },
  ]);
  expect((await device.extents(0, SIZE)).map(({ length, zero }) => [length, zero])).toEqual([
    [CLUSTER, false],
    [CLUSTER, true],
    [5 * CLUSTER, false],
  ]);
  expect(await device.ownExtents(CLUSTER + 100, 50)).toEqual([{ kind: 'zero', length: 50 }]);
  const at = bench.reactor.arena.allocate(CLUSTER);
  expect(await runBio(bench.pool, device, { op: WRITE, offset: 0, length: CLUSTER, at })).toBe(ERRNO.EPERM);
  expect(await runBio(bench.pool, device, { op: READ, offset: SIZE, length: CLUSTER, at })).toBe(ERRNO.EINVAL);
  bench.reactor.arena.release(at);
  await device.close();
  await device.close();
});

test('compressed clusters at the same place of two files are not mixed up', async () => {
  const options = { clusterBits: 16, size: 131_072, compression: 'zlib' } as const;
  const [lower, upper] = [Buffer.alloc(131_072, 'lower '), Buffer.alloc(131_072, 'upper ')];
  await bench.writeImage(bench.path('twin-a.qcow2'), options, lower, ['text', 'text']);
  const backing = { name: 'twin-a.qcow2', format: 'qcow2' } as const;
  await bench.writeImage(bench.path('twin-b.qcow2'), { ...options, backing }, upper, ['nothing', 'text']);
  const read = await bench.readImage(bench.path('twin-b.qcow2'), 4096);
  expect(read.equals(Buffer.concat([lower.subarray(0, 65_536), upper.subarray(65_536)]))).toBe(true);
});

describe('damage is an error where it is, and nowhere else', () => {
  const EIO = ERRNO.EIO;
  const damages: Record<string, [change: (file: Buffer, l1: number, l2: number) => void, want: number[]]> = {
    'an L2 table past the end': [(file, l1) => file.writeBigUInt64BE(2n ** 40n, l1), Array<number>(7).fill(EIO)],
    'an L2 table at an odd place': [(file, l1) => file.writeBigUInt64BE(1000n, l1), Array<number>(7).fill(EIO)],
    'reserved bits in L1': [(file, l1) => (file[l1]! |= 0x7f), Array<number>(7).fill(EIO)],
    'data past the end': [(file, _, l2) => file.writeBigUInt64BE(2n ** 63n + 2n ** 50n, l2), [EIO, 0, 0, 0, 0, 0, 0]],
    'data at an odd place': [(file, _, l2) => file.writeUInt8(0xaa, l2 + 7), [EIO, 0, 0, 0, 0, 0, 0]],
    'compressed data past the end': [
      (file, _, l2) => file.writeBigUInt64BE(2n ** 62n + 2n ** 50n, l2 + 16),
      [0, 0, EIO, 0, 0, 0, 0],
    ],
    'compressed data that is none': [spoilCompressed, [0, 0, EIO, 0, EIO, 0, 0]],
  };
  for (const [what, [change, want]] of Object.entries(damages)) {
    test(`found: ${what}`, async () => {
      const file = await image('damaged.qcow2', change);
      expect(await statuses(file)).toEqual(want);
    });
  }

  function spoilCompressed(bytes: Buffer, _l1: number, l2: number): void {
    for (const cluster of [2, 4]) {
      const at = Number(bytes.readBigUInt64BE(l2 + cluster * 8) & 0xffff_ffffn);
      bytes.fill(0xff, at, at + 8);
    }
  }

  test('a file cut short', async () => {
    const file = await image('cut.qcow2');
    fs.truncateSync(file, fs.statSync(file).size - 3 * CLUSTER);
    await expect(openQcow2(file, bench)).rejects.toThrow(/cut short/);
  });

  test('extents name the place', async () => {
    const file = await image('bad-extents.qcow2', (bytes, _, l2) => bytes.writeUInt8(0xaa, l2 + 7));
    const device = await openQcow2(file, bench);
    await expect(device.extents(0, SIZE)).rejects.toThrow(/mapping of offset 0 is damaged/);
    await device.close();
  });
});

test('random damage ends in data or an error, soon, and leaves nothing behind', async () => {
  const good = fs.readFileSync(await image('fuzz.qcow2'));
  const file = bench.path('fuzz.qcow2');
  const change = fc.record({ at: fc.nat(good.length - 1), value: fc.integer({ min: 0, max: 255 }) });
  await fc.assert(
    fc.asyncProperty(fc.array(change, { minLength: 1, maxLength: 6 }), async (changes) => {
      const bytes = Buffer.from(good);
      for (const { at, value } of changes) bytes[at] = value;
      fs.writeFileSync(file, bytes);
      try {
        for (const status of await statuses(file)) expect([0, ERRNO.EIO]).toContain(status);
        const device = await openQcow2(file, bench);
        try {
          await device.extents(0, device.size);
        } finally {
          await device.close();
        }
      } catch (error) {
        expect(error).toBeInstanceOf(BlksnapError);
      }
      expect(bench.reactor.arena.lentBytes).toBe(0);
      expect(bench.pool.lent).toBe(0);
    }),
    { numRuns: 300 },
  );
});

describe('backing files', () => {
  /** An empty image of two clusters that names its backing file as told. */
  async function over(name: string, backing: string, format: 'qcow2' | 'raw' = 'qcow2'): Promise<string> {
    const file = bench.path(name);
    fs.rmSync(file, { force: true });
    await bench.writeImage(
      file,
      { clusterBits: 16, size: 131_072, backing: { name: backing, format } },
      Buffer.alloc(131_072),
      ['nothing', 'nothing'],
    );
    return file;
  }

  test('a chain that comes back to itself', async () => {
    const file = await over('loop-a.qcow2', 'loop-b.qcow2');
    await over('loop-b.qcow2', 'loop-a.qcow2');
    await expect(openQcow2(file, bench)).rejects.toThrow(/comes back to it/);
    await expect(openQcow2(await over('self.qcow2', 'self.qcow2'), bench)).rejects.toThrow(/comes back to it/);
  });

  test('a missing, a foreign and a hidden one', async () => {
    await expect(openQcow2(await over('m.qcow2', 'nowhere.qcow2'), bench)).rejects.toMatchObject({
      code: 'ENOENT',
      message: expect.stringMatching(/backing file "nowhere.qcow2" of ".*m.qcow2"/),
    });
    await expect(openQcow2(await over('p.qcow2', 'nbd://host/x'), bench)).rejects.toThrow(/not a path but a protocol/);
    await expect(openQcow2(await over('j.qcow2', 'json:{"driver":"file"}'), bench)).rejects.toThrow(/protocol/);
    await expect(openQcow2(await over('d.qcow2', '.'), bench)).rejects.toThrow(/not a regular file/);
    await expect(openQcow2(await over('r.qcow2', 'base.raw'), bench)).rejects.toThrow(/qcow2 header/);
  });

  test('one whose format is not stated, or unknown', async () => {
    const file = await over('format.qcow2', 'base.raw', 'raw');
    const bytes = fs.readFileSync(file);
    bytes.writeUInt32BE(0x1234, 112);
    fs.writeFileSync(file, bytes);
    await expect(openQcow2(file, bench)).rejects.toThrow(/does not state the format/);
    bytes.writeUInt32BE(0xe2792aca, 112);
    bytes.write('vdi', 120);
    fs.writeFileSync(file, bytes);
    await expect(openQcow2(file, bench)).rejects.toThrow(/format "vdi", want qcow2 or raw/);
  });

  test('only where the caller allows', async () => {
    const allowBacking = insideDirectory(bench.directory);
    const inside = await openQcow2(await over('in.qcow2', './base.raw', 'raw'), { ...deps(), allowBacking });
    await inside.close();
    fs.symlinkSync('/dev/zero', bench.path('link'));
    for (const name of ['/dev/zero', '../../../../../dev/zero', 'link']) {
      const outside = await over('out.qcow2', name, 'raw');
      await expect(openQcow2(outside, { ...deps(), allowBacking })).rejects.toMatchObject({ code: 'EACCES' });
    }
  });

  test('a chain too deep', async () => {
    for (let i = 0; i < 257; i++) {
      const file = bench.path(`chain-${i}.qcow2`);
      const backing = i === 0 ? {} : { backing: { name: `chain-${i - 1}.qcow2`, format: 'qcow2' as const } };
      await bench.writeImage(file, { clusterBits: 9, size: 512, ...backing }, Buffer.alloc(512, 1), [
        i === 0 ? 'text' : 'nothing',
      ]);
    }
    expect((await bench.readImage(bench.path('chain-255.qcow2'))).equals(Buffer.alloc(512, 1))).toBe(true);
    await expect(openQcow2(bench.path('chain-256.qcow2'), bench)).rejects.toThrow(/more than 256 images/);
  });

  const deps = (): Pick<Bench, 'reactor' | 'pool'> => ({ reactor: bench.reactor, pool: bench.pool });
});
