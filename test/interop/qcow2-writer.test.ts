/** Images that we write, as QEMU sees them: random layouts, every compression, chains. */

import fc from 'fast-check';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openQcow2 } from '../../src/qcow2/open.ts';
import { Qcow2Writer } from '../../src/qcow2/writer.ts';
import { RangeChecksums } from '../../src/util/checksum.ts';
import { Prng } from '../../src/util/prng.ts';
import { Bench, contentOf, assertSound, qemuImg } from '../qcow2-images.ts';
import type { ClusterKind } from '../qcow2-images.ts';
import { requirePrograms } from '../requirements.ts';

let bench: Bench;
beforeAll(async () => {
  bench = await Bench.open();
});
afterAll(() => bench.close());

const layout = fc.record({
  seed: fc.nat(),
  clusterBits: fc.constantFrom(9, 12, 16, 17),
  compression: fc.constantFrom('none', 'zlib', 'zstd'),
  lower: fc.array(fc.constantFrom<ClusterKind>('nothing', 'zero', 'random', 'text'), { minLength: 1, maxLength: 40 }),
  upper: fc.array(fc.constantFrom<ClusterKind>('nothing', 'nothing', 'zero', 'random', 'text'), { maxLength: 60 }),
  tailSectors: fc.integer({ min: 1, max: 128 }),
});

test('random chains read the same through qemu-img and through us, and qemu-img check finds nothing', async (context) => {
  requirePrograms(context, 'qemu-img');
  await fc.assert(
    fc.asyncProperty(layout, async ({ seed, clusterBits, compression, lower, upper, tailSectors }) => {
      const random = new Prng(seed);
      const clusterSize = 2 ** clusterBits;
      const tail = Math.min(tailSectors * 512, clusterSize);
      const sizeOf = (clusters: number): number => Math.max(0, clusters - 1) * clusterSize + tail;
      const [base, top, raw] = [bench.path('base.qcow2'), bench.path('top.qcow2'), bench.path('out.raw')];
      for (const file of [base, top, raw]) rmSync(file, { force: true });
      const baseContent = contentOf(null, sizeOf(lower.length), clusterSize, lower, random);
      const kinds: ClusterKind[] = upper.length === 0 ? ['nothing'] : upper;
      const topContent = contentOf(baseContent, sizeOf(kinds.length), clusterSize, kinds, random);
      const common = { clusterBits, compression } as const;
      const written = await bench.writeImage(base, { ...common, size: baseContent.length }, baseContent, lower);
      await bench.writeImage(
        top,
        { ...common, size: topContent.length, backing: { name: 'base.qcow2', format: 'qcow2' } },
        topContent,
        kinds,
      );

      assertSound(base);
      assertSound(top);
      qemuImg('convert', '-O', 'raw', top, raw);
      expect(readFileSync(raw).equals(topContent)).toBe(true);
      expect((await bench.readImage(top, 512 * (1 + random.below(300)))).equals(topContent)).toBe(true);
      const file = readFileSync(base);
      expect(written.fileBytes).toBe(file.length);
      const sums = new RangeChecksums(written.checksums.rangeBytes);
      sums.update(file);
      expect(written.checksums.checksums).toEqual(sums.finish());
      expect(written.dataBytes).toBe(dataBytes(lower, clusterSize, baseContent.length));
    }),
    { numRuns: 40 },
  );
});

function dataBytes(kinds: readonly ClusterKind[], clusterSize: number, size: number): number {
  const lengths = kinds.map((kind, i) =>
    kind === 'random' || kind === 'text' ? Math.min(clusterSize, size - i * clusterSize) : 0,
  );
  return lengths.reduce((sum, length) => sum + length, 0);
}

test('extents agree with qemu-img map', async (context) => {
  requirePrograms(context, 'qemu-img');
  const random = new Prng(7);
  const kinds = Array.from({ length: 200 }, () => (['nothing', 'zero', 'random'] as const)[random.below(3)]!);
  const clusterSize = 65_536;
  const size = kinds.length * clusterSize;
  const base = contentOf(null, size / 2, clusterSize, kinds.slice(0, 100), random);
  writeFileSync(bench.path('map-base.raw'), base);
  const content = contentOf(base, size, clusterSize, kinds.toReversed(), random);
  await bench.writeImage(
    bench.path('map.qcow2'),
    { clusterBits: 16, size, backing: { name: 'map-base.raw', format: 'raw' } },
    content,
    kinds.toReversed(),
  );
  const device = await openQcow2(bench.path('map.qcow2'), bench);
  const ours: Array<{ start: number; length: number; zero: boolean }> = [];
  for (let at = 0; at < size;) {
    for (const { length, zero } of await device.extents(at, size - at)) {
      const last = ours.at(-1);
      if (last?.zero === zero) last.length += length;
      else ours.push({ start: at, length, zero });
      at += length;
    }
  }
  const own = await device.ownExtents(0, size);
  expect(own.reduce((sum, extent) => sum + extent.length, 0)).toBe(size);
  expect(own.filter((extent) => extent.kind === 'data').reduce((sum, extent) => sum + extent.length, 0)).toBe(
    dataBytes(kinds, clusterSize, size),
  );
  await device.close();
  const map = JSON.parse(qemuImg('map', '--output=json', bench.path('map.qcow2'))) as typeof ours;
  const theirs: typeof ours = [];
  for (const { start, length, zero } of map) {
    const last = theirs.at(-1);
    if (last?.zero === zero) last.length += length;
    else theirs.push({ start, length, zero });
  }
  expect(ours).toEqual(theirs);
});

test('a disk of 8 PiB takes a file of a few clusters', async (context) => {
  requirePrograms(context, 'qemu-img');
  const file = bench.path('huge.qcow2');
  const size = 2 ** 53;
  const writer = await Qcow2Writer.create(file, { reactor: bench.reactor, size });
  const at = bench.reactor.arena.allocate(131_072);
  bench.reactor.arena.bytes.fill(0x5a, at, at + 131_072);
  await writer.write(size - 131_072, at, 131_072);
  bench.reactor.arena.release(at);
  await writer.finish();
  assertSound(file);
  const device = await openQcow2(file, bench);
  expect(await device.extents(0, 2 ** 40)).toEqual([{ length: 2 ** 40, hole: true, zero: true }]);
  expect(await device.extents(size - 2 ** 20, 2 ** 20)).toEqual([
    { length: 2 ** 20 - 131_072, hole: true, zero: true },
    { length: 131_072, hole: false, zero: false },
  ]);
  await device.close();
});
