import fs from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Bench, contentOf } from '../../test/qcow2-images.ts';
import type { ClusterKind } from '../../test/qcow2-images.ts';
import { openQcow2 } from '../qcow2/open.ts';
import { Prng } from '../util/prng.ts';
import { dataRuns } from './data-runs.ts';

const CLUSTER = 65_536;
const BELOW: readonly ClusterKind[] = ['random', 'random', 'random', 'nothing', 'random', 'random'];
const ABOVE: readonly ClusterKind[] = ['nothing', 'random', 'zero', 'nothing', 'nothing', 'random', 'random'];

let bench: Bench;
let below: string;
beforeAll(async () => {
  bench = await Bench.open();
  below = bench.path('below.qcow2');
  const size = BELOW.length * CLUSTER;
  const content = contentOf(Buffer.alloc(size), size, CLUSTER, BELOW, new Prng(1));
  await bench.writeImage(below, { clusterBits: 16, size }, content, BELOW);
});
afterAll(() => bench.close());

/** An image of all of ABOVE but its last 512 bytes, over another. */
async function image(name: string, compression: 'none' | 'zlib', backing: string): Promise<string> {
  const file = bench.path(name);
  const size = ABOVE.length * CLUSTER - 512;
  const kinds = compression === 'none' ? ABOVE : ABOVE.map((kind) => (kind === 'random' ? 'text' : kind));
  const content = contentOf(Buffer.alloc(size), size, CLUSTER, kinds, new Prng(2));
  const format = backing.endsWith('.raw') ? 'raw' : 'qcow2';
  const options = { clusterBits: 16, size, compression, backing: { name: backing, format } } as const;
  await bench.writeImage(file, options, content, kinds);
  return file;
}

async function runsOf(file: string, files: readonly string[]): Promise<Float64Array[] | null> {
  const device = await openQcow2(file, bench);
  try {
    return await dataRuns(device, files, undefined);
  } finally {
    await device.close();
  }
}

test('the runs of all files of a chain together are the disk', async () => {
  const above = await image('above.qcow2', 'none', 'below.qcow2');
  const files = [above, below];
  const runs = await runsOf(above, files);
  const disk = Buffer.alloc(ABOVE.length * CLUSTER - 512);
  for (const [index, file] of files.entries()) {
    const bytes = fs.readFileSync(file);
    const triples = [...runs![index]!];
    for (let at = 0; at < triples.length; at += 3) {
      const [place, offset, length] = triples.slice(at, at + 3) as [number, number, number];
      bytes.copy(disk, offset, place, place + length);
    }
  }
  expect(disk.equals(await bench.readImage(above))).toBe(true);
  expect(runs!.map((triples) => triples.length / 3)).toEqual([2, 2]);
});

describe('there are none', () => {
  test('when a cluster is compressed', async () => {
    const above = await image('compressed.qcow2', 'zlib', 'below.qcow2');
    expect(await runsOf(above, [above, below])).toBeNull();
  });

  test('when a raw file, or one that is not of the chain, holds data', async () => {
    fs.writeFileSync(bench.path('base.raw'), Buffer.alloc(CLUSTER, 1));
    const overRaw = await image('over-raw.qcow2', 'none', 'base.raw');
    expect(await runsOf(overRaw, [overRaw])).toBeNull();
    const above = await image('above-two.qcow2', 'none', 'below.qcow2');
    expect(await runsOf(above, [above])).toBeNull();
  });

  test('when two clusters of the disk share one of the file', async () => {
    const shared = bench.path('shared.qcow2');
    const bytes = fs.readFileSync(below);
    const l2 = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(40))) & 0xff_ffff_ffff_ffffn);
    bytes.copy(bytes, l2 + 8, l2, l2 + 8);
    fs.writeFileSync(shared, bytes);
    expect(await runsOf(shared, [shared])).toBeNull();
    expect(await runsOf(below, [below])).toHaveLength(1);
  });
});
