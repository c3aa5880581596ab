/** Images that QEMU makes, read by us byte for byte. */

import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { TestContext } from 'vitest';
import { openQcow2 } from '../../src/qcow2/open.ts';
import { Prng } from '../../src/util/prng.ts';
import { Bench, qemuImg, qemuIo } from '../qcow2-images.ts';
import type { ClusterKind } from '../qcow2-images.ts';
import { requirePrograms } from '../requirements.ts';

let bench: Bench;
beforeAll(async () => {
  bench = await Bench.open();
});
afterAll(() => bench.close());

/** The image as qemu-img reads it. */
function asQemuReads(file: string): Buffer {
  const raw = `${file}.raw`;
  qemuImg('convert', '-f', 'qcow2', '-O', 'raw', file, raw);
  const content = readFileSync(raw);
  rmSync(raw);
  return content;
}

/** qemu-io commands that write patterns, zeroes and discards to random places. */
function randomWrites(size: number, seed: number): string[] {
  const random = new Prng(seed);
  return Array.from({ length: 24 }, (_, i) => {
    const offset = random.below(size / 512) * 512;
    const length = Math.min((1 + random.below(300)) * 512, size - offset);
    const kind = random.below(4);
    if (kind === 0) return `write -z ${random.chance(0.5) ? '-u' : ''} ${offset} ${length}`;
    if (kind === 1) return `discard ${offset} ${length}`;
    return `write -P ${(i + 1) % 256} ${offset} ${length}`;
  });
}

/** In which steps we read the image otherwise than qemu-img does. */
async function stepsThatDiffer(file: string): Promise<number[]> {
  const want = asQemuReads(file);
  const differ: number[] = [];
  for (const step of [2 ** 20, 24 * 512]) if (!(await bench.readImage(file, step)).equals(want)) differ.push(step);
  return differ;
}

function needsQemu(context: TestContext): void {
  requirePrograms(context, 'qemu-img', 'qemu-io');
}

describe('every kind of image that qemu-img creates', () => {
  const kinds: Record<string, string> = {
    'version 2': 'compat=0.10',
    'version 3': 'compat=1.1',
    'clusters of 512': 'cluster_size=512',
    'clusters of 4 KiB': 'cluster_size=4k',
    'clusters of 2 MiB': 'cluster_size=2M',
    'lazy refcounts': 'lazy_refcounts=on',
    'refcounts of 1 bit': 'refcount_bits=1',
    'refcounts of 64 bits': 'refcount_bits=64',
    'preallocated metadata': 'preallocation=metadata',
    'preallocated data': 'preallocation=full',
    subclusters: 'extended_l2=on',
    'subclusters of clusters of 16 KiB': 'extended_l2=on,cluster_size=16k',
  };
  for (const [name, options] of Object.entries(kinds)) {
    test(`${name}, read byte for byte`, async (context) => {
      needsQemu(context);
      const file = bench.path(`${name.replaceAll(' ', '-')}.qcow2`);
      const size = 6 * 2 ** 20 + 512 * 5;
      qemuImg('create', '-q', '-f', 'qcow2', '-o', options, file, String(size));
      qemuIo(file, ...randomWrites(size, name.length));
      expect(await stepsThatDiffer(file)).toEqual([]);
    });
  }
});

describe('compressed clusters', () => {
  const kinds: ReadonlyArray<readonly [type: string, clusterSize: number]> = [
    ['zlib', 65_536],
    ['zlib', 512],
    ['zlib', 2 ** 21],
    ['zstd', 65_536],
    ['zstd', 4096],
    ['zstd', 2 ** 21],
  ];
  for (const [type, clusterSize] of kinds) {
    test(`${type} in clusters of ${clusterSize}`, async (context) => {
      needsQemu(context);
      const raw = bench.path('text.raw');
      const random = new Prng(clusterSize);
      const content = Buffer.alloc(5 * 2 ** 20 + 512);
      for (let at = 0; at < content.length; at += 10_000) {
        const part = content.subarray(at, at + 10_000);
        if (random.chance(0.2)) random.fill(part);
        else part.fill(`line ${random.below(100)}\n`);
      }
      writeFileSync(raw, content);
      const file = bench.path(`${type}-${clusterSize}.qcow2`);
      qemuImg('convert', '-c', '-O', 'qcow2', '-o', `compression_type=${type},cluster_size=${clusterSize}`, raw, file);
      for (const step of [2 ** 20, 24 * 512]) expect((await bench.readImage(file, step)).equals(content)).toBe(true);
    });
  }

  test('overwritten in part', async (context) => {
    needsQemu(context);
    const raw = bench.path('a.raw');
    writeFileSync(raw, Buffer.alloc(2 ** 21, 'abc'));
    const file = bench.path('overwritten.qcow2');
    qemuImg('convert', '-c', '-O', 'qcow2', raw, file);
    qemuIo(file, ...randomWrites(2 ** 21, 3));
    expect(await stepsThatDiffer(file)).toEqual([]);
  });
});

describe('chains', () => {
  test('qcow2 over qcow2 over raw, of different sizes and clusters', async (context) => {
    needsQemu(context);
    const raw = bench.path('base.raw');
    const random = new Prng(1);
    const content = Buffer.alloc(3 * 2 ** 20);
    random.fill(content);
    writeFileSync(raw, content);
    const [middle, top] = [bench.path('middle.qcow2'), bench.path('top.qcow2')];
    qemuImg('create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base.raw', '-o', 'cluster_size=4k', middle, '5M');
    qemuIo(middle, ...randomWrites(5 * 2 ** 20, 2));
    qemuImg('create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', middle, '-o', 'extended_l2=on', top, '7M');
    qemuIo(top, ...randomWrites(7 * 2 ** 20, 3));
    expect(await stepsThatDiffer(middle)).toEqual([]);
    expect(await stepsThatDiffer(top)).toEqual([]);
    qemuImg('create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', top, bench.path('shorter.qcow2'), '1M');
    expect(await stepsThatDiffer(bench.path('shorter.qcow2'))).toEqual([]);
  });

  test('sixty images deep', async (context) => {
    needsQemu(context);
    const size = 2 ** 20;
    for (let i = 0; i < 60; i++) {
      const file = bench.path(`deep-${i}.qcow2`);
      const content = Buffer.alloc(size);
      const kinds = Array.from({ length: 256 }, (_, cluster): ClusterKind => (cluster % 60 === i ? 'text' : 'nothing'));
      for (const [cluster, kind] of kinds.entries())
        if (kind === 'text') content.fill(i + 1, cluster * 4096, (cluster + 1) * 4096);
      const backing = i === 0 ? {} : { backing: { name: `deep-${i - 1}.qcow2`, format: 'qcow2' as const } };
      await bench.writeImage(file, { clusterBits: 12, size, ...backing }, content, kinds);
    }
    const want = Buffer.alloc(size);
    for (let cluster = 0; cluster < 256; cluster++) want.fill((cluster % 60) + 1, cluster * 4096, (cluster + 1) * 4096);
    expect((await bench.readImage(bench.path('deep-59.qcow2'))).equals(want)).toBe(true);
    expect(await stepsThatDiffer(bench.path('deep-59.qcow2'))).toEqual([]);
  });
});

test('internal snapshots are passed over: the active state is read', async (context) => {
  needsQemu(context);
  const file = bench.path('snapshots.qcow2');
  qemuImg('create', '-q', '-f', 'qcow2', file, '4M');
  qemuIo(file, 'write -P 1 0 2M');
  qemuImg('snapshot', '-c', 'before', file);
  qemuIo(file, 'write -P 2 1M 2M');
  expect(await stepsThatDiffer(file)).toEqual([]);
});

test('an image that was not closed is read all the same', async (context) => {
  needsQemu(context);
  const file = bench.path('dirty.qcow2');
  qemuImg('create', '-q', '-f', 'qcow2', '-o', 'lazy_refcounts=on', file, '4M');
  // The writer ends itself with a signal: the dirty bit stays.
  expect(() =>
    execFileSync('qemu-io', ['-f', 'qcow2', '-c', 'write -P 9 1M 1M', '-c', 'flush', '-c', 'sigraise 9', file], {
      stdio: 'ignore',
    }),
  ).toThrow(/Command failed/);
  expect(qemuImg('info', '-U', '--output=json', file)).toContain('"dirty-flag": true');
  const content = await bench.readImage(file);
  expect(content.subarray(2 ** 20, 2 ** 21).every((byte) => byte === 9)).toBe(true);
});

test('the same place is read by many at once, with a table to load and a cluster to unpack', async (context) => {
  needsQemu(context);
  const raw = bench.path('many.raw');
  writeFileSync(raw, Buffer.alloc(2 ** 20, 'many '));
  const file = bench.path('many.qcow2');
  qemuImg('convert', '-c', '-O', 'qcow2', raw, file);
  const device = await openQcow2(file, bench);
  const contents = await Promise.all(Array.from({ length: 6 }, () => bench.read(device, 4096)));
  const extents = await Promise.all(Array.from({ length: 6 }, () => device.extents(0, 2 ** 20)));
  await device.close();
  for (const content of contents) expect(content.equals(readFileSync(raw))).toBe(true);
  for (const list of extents) expect(list).toEqual([{ length: 2 ** 20, hole: false, zero: false }]);
});
