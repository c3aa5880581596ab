import zlib from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { Prng } from '../util/prng.ts';
import { clusterCodec, zstdFrameLength } from './compression.ts';

const CLUSTER = 65_536;
const TEXT = new Uint8Array(Buffer.alloc(CLUSTER, 'some text that repeats '));

function available(type: 'zlib' | 'zstd'): boolean {
  try {
    clusterCodec(type);
    return true;
  } catch {
    return false;
  }
}

describe.each(['zlib', 'zstd'] as const)('%s', (type) => {
  test.runIf(available(type))('gives a cluster back, whatever follows the compressed bytes', () => {
    const codec = clusterCodec(type);
    const compressed = codec.compress(TEXT)!;
    const cluster = new Uint8Array(CLUSTER);
    for (const tail of [new Uint8Array(0), new Uint8Array(700), new Uint8Array(700).fill(0x28)]) {
      cluster.fill(0);
      expect(codec.decompress(Buffer.concat([compressed, tail]), cluster)).toBe(true);
      expect(Buffer.compare(cluster, TEXT)).toBe(0);
    }
  });

  test.runIf(available(type))('says when a cluster does not shrink', () => {
    const random = new Prng(1);
    expect(clusterCodec(type).compress(Uint8Array.from({ length: CLUSTER }, () => random.u32()))).toBeNull();
  });

  test.runIf(available(type))('refuses what is cut short, damaged, too short or too long', () => {
    const codec = clusterCodec(type);
    const compressed = codec.compress(TEXT)!.slice();
    const cluster = new Uint8Array(CLUSTER);
    expect(codec.decompress(compressed.subarray(0, compressed.length - 1), cluster)).toBe(false);
    expect(codec.decompress(new Uint8Array(0), cluster)).toBe(false);
    expect(codec.decompress(new Uint8Array(512).fill(0xff), cluster)).toBe(false);
    expect(codec.decompress(compressed, new Uint8Array(2 * CLUSTER))).toBe(false);
    expect(codec.decompress(compressed, new Uint8Array(CLUSTER / 2))).toBe(false);
  });

  test.runIf(available(type))('a bomb costs no more than a cluster', () => {
    const bomb =
      type === 'zlib'
        ? zlib.deflateRawSync(Buffer.alloc(2 ** 28))
        : clusterCodec('zstd').compress(new Uint8Array(2 ** 28))!;
    const before = process.memoryUsage().arrayBuffers;
    expect(clusterCodec(type).decompress(bomb, new Uint8Array(512))).toBe(false);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(2 ** 22);
  });
});

test('the length of a zstd frame is found without the library', () => {
  // Single segment, content size of one byte, one raw block of three bytes.
  const frame = Uint8Array.from([0x28, 0xb5, 0x2f, 0xfd, 0x20, 3, 0x19, 0, 0, 1, 2, 3]);
  expect(zstdFrameLength(frame, 0)).toBe(12);
  expect(zstdFrameLength(Uint8Array.from([...frame, 9, 9]), 0)).toBe(12);
  for (let length = 0; length < 12; length++) expect(zstdFrameLength(frame.subarray(0, length), 0)).toBe(-1);
});
