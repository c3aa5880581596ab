import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  COMPRESSED,
  CORRUPT,
  DATA,
  decodeExtendedL2,
  decodeL1,
  decodeL2,
  encodeL1,
  encodeL2Compressed,
  encodeL2Data,
  encodeL2Zero,
  L2Entry,
  refcountClusters,
  UNALLOCATED,
  ZERO,
} from './format.ts';

const view = new DataView(new ArrayBuffer(16));
const entry = new L2Entry();
const clusterBits = fc.integer({ min: 9, max: 21 });

function decoded(value: bigint, bits = 16, version = 3): number {
  view.setBigUint64(0, value);
  decodeL2(view, 0, bits, version, entry);
  return entry.state;
}

test('offsets survive encoding, up to 8 PiB', () => {
  fc.assert(
    fc.property(clusterBits, fc.nat(2 ** 31 - 1), (bits, cluster) => {
      const host = Math.min((cluster + 1) * 2 ** bits, 2 ** 53 - 2 ** bits);
      encodeL1(view, 0, host);
      expect(decodeL1(view, 0, bits)).toBe(host);
      encodeL2Data(view, 0, host);
      decodeL2(view, 0, bits, 3, entry);
      expect([entry.state, entry.host]).toEqual([DATA, host]);
    }),
  );
});

test('compressed places survive encoding, rounded to sectors', () => {
  fc.assert(
    fc.property(clusterBits, fc.integer({ min: 1, max: 2 ** 40 }), fc.nat(), (bits, host, some) => {
      const length = 1 + (some % 2 ** bits);
      encodeL2Compressed(view, 0, bits, host, length);
      decodeL2(view, 0, bits, 3, entry);
      expect([entry.state, entry.host]).toEqual([COMPRESSED, host]);
      expect(entry.hostLength).toBeGreaterThanOrEqual(length);
      expect(entry.hostLength).toBeLessThan(length + 512);
      expect((host + entry.hostLength) % 512).toBe(0);
    }),
  );
});

test('states of entries', () => {
  expect(decoded(0n)).toBe(UNALLOCATED);
  expect(decoded(1n)).toBe(ZERO);
  expect(decoded(0x8000_0000_0005_0001n)).toBe(ZERO);
  expect(decoded(0x8000_0000_0005_0000n)).toBe(DATA);
  encodeL2Zero(view, 0);
  expect(decoded(view.getBigUint64(0))).toBe(ZERO);
});

test('whatever the format reserves is corrupt', () => {
  expect(decoded(1n, 16, 2)).toBe(CORRUPT);
  expect(decoded(0x8000_0000_0000_0000n)).toBe(CORRUPT);
  expect(decoded(0x8000_0000_0005_0002n)).toBe(CORRUPT);
  expect(decoded(0x8100_0000_0005_0000n)).toBe(CORRUPT);
  expect(decoded(0x8000_0000_0005_8000n)).toBe(CORRUPT);
  expect(decoded(0x4000_0000_0000_0000n)).toBe(CORRUPT);
  for (const value of [0x0100_0000_0001_0000n, 0x8000_0000_0001_0200n, 1n]) {
    view.setBigUint64(0, value);
    expect(decodeL1(view, 0, 16)).toBe(-1);
  }
});

test('subclusters are allocated or zero, never both, never nowhere', () => {
  const extended = (first: bigint, bitmap: bigint): number => {
    view.setBigUint64(0, first);
    view.setBigUint64(8, bitmap);
    decodeExtendedL2(view, 0, 16, entry);
    return entry.state;
  };
  expect(extended(0x8000_0000_0005_0000n, 0x0000_0002_0000_0001n)).toBe(DATA);
  expect([entry.allocated, entry.zero]).toEqual([1, 2]);
  expect(extended(0n, 0xffff_ffff_0000_0000n)).toBe(DATA);
  expect(extended(0n, 1n)).toBe(CORRUPT);
  expect(extended(0x8000_0000_0005_0000n, 0x0000_0001_0000_0001n)).toBe(CORRUPT);
  expect(extended(0x8000_0000_0005_0001n, 0n)).toBe(CORRUPT);
});

test('refcount blocks cover themselves and their table, with none to spare', () => {
  fc.assert(
    fc.property(clusterBits, fc.integer({ min: 1, max: 2 ** 36 }), (bits, used) => {
      const { blocks, table } = refcountClusters(used, bits);
      const perBlock = 2 ** bits / 2;
      expect(blocks * perBlock).toBeGreaterThanOrEqual(used + blocks + table);
      expect((blocks - 1) * perBlock).toBeLessThan(used + blocks + table);
      expect(table).toBe(Math.ceil((blocks * 8) / 2 ** bits));
    }),
  );
});
