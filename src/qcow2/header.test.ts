import { describe, expect, test } from 'vitest';
import { decodeHeader, encodeHeader } from './header.ts';
import type { HeaderToWrite } from './header.ts';

const FILE_BYTES = 2 ** 20;
const GOOD: HeaderToWrite = {
  clusterBits: 16,
  size: 2 ** 30,
  l1Offset: 0x30000,
  l1Entries: 2,
  refcountOffset: 0x10000,
  refcountTableClusters: 1,
  compression: 'zlib',
  backing: { name: 'base.qcow2', format: 'qcow2' },
};

/** The first cluster of a good image, after `change`. */
function image(change: (view: DataView, bytes: Uint8Array) => void = () => {}, header = GOOD): Uint8Array {
  const bytes = new Uint8Array(65_536);
  bytes.set(encodeHeader(header));
  change(new DataView(bytes.buffer), bytes);
  return bytes;
}

const decode = (bytes: Uint8Array, fileBytes = FILE_BYTES): unknown => decodeHeader(bytes, fileBytes, 'x.qcow2');

test('what is encoded is decoded', () => {
  expect(decode(image())).toEqual({
    version: 3,
    clusterBits: 16,
    size: 2 ** 30,
    l1Offset: 0x30000,
    l1Entries: 2,
    compression: 'zlib',
    extendedL2: false,
    dirty: false,
    backing: { name: 'base.qcow2', format: 'qcow2' },
  });
  expect(decode(image(undefined, { ...GOOD, compression: 'zstd', backing: null }))).toMatchObject({
    compression: 'zstd',
    backing: null,
  });
});

test('a version 2 header ends at byte 72', () => {
  const bytes = image((view) => {
    view.setUint32(4, 2);
    view.setBigUint64(72, 0n);
  });
  expect(decode(bytes)).toMatchObject({ version: 2, compression: 'zlib', backing: { format: null } });
});

test('a dirty image may be read', () => {
  expect(decode(image((view) => view.setBigUint64(72, 1n)))).toMatchObject({ dirty: true });
});

test('an L1 table may be longer than the disk needs', () => {
  expect(decode(image((view) => view.setUint32(36, 100)))).toMatchObject({ l1Entries: 2 });
});

describe('malformed headers', () => {
  const feature = (bit: number) => (view: DataView) => view.setBigUint64(72, 1n << BigInt(bit));
  const extension = (type: number, length: number) => (view: DataView) => {
    view.setUint32(112, type);
    view.setUint32(116, length);
  };
  const malformed: ReadonlyArray<
    readonly [what: string, change: (view: DataView, bytes: Uint8Array) => void, code: string, words: RegExp]
  > = [
    ['another magic', (view) => view.setUint32(0, 0x51464900), 'EINVAL', /does not start with a qcow2 header/],
    ['version 1', (view) => view.setUint32(4, 1), 'EOPNOTSUPP', /version 1, want 2 or 3/],
    ['version 4', (view) => view.setUint32(4, 4), 'EOPNOTSUPP', /version 4/],
    ['clusters of 256 bytes', (view) => view.setUint32(20, 8), 'EINVAL', /2\^8/],
    ['clusters of 4 MiB', (view) => view.setUint32(20, 22), 'EINVAL', /2\^22/],
    ['absurd clusters', (view) => view.setUint32(20, 0xffffffff), 'EINVAL', /2\^4294967295/],
    ['a disk beyond 8 PiB', (view) => view.setBigUint64(24, 2n ** 63n), 'EFBIG', /larger than 8 PiB/],
    [
      'a disk of part of a sector',
      (view) => view.setBigUint64(24, 1000n),
      'EINVAL',
      /1000 bytes is not a multiple of 512/,
    ],
    ['AES', (view) => view.setUint32(32, 1), 'EOPNOTSUPP', /encrypted/],
    ['LUKS', (view) => view.setUint32(32, 2), 'EOPNOTSUPP', /encrypted/],
    ['an overlong L1 table', (view) => view.setUint32(36, 0xffffffff), 'EFBIG', /L1 table has 34359738360 bytes/],
    ['an L1 table that is too short', (view) => view.setUint32(36, 1), 'EINVAL', /1 entries, its disk needs 2/],
    ['an L1 table at an odd place', (view) => view.setBigUint64(40, 0x30200n), 'EINVAL', /L1 table lies at offset/],
    ['an L1 table over the header', (view) => view.setBigUint64(40, 0n), 'EINVAL', /L1 table lies at offset 0/],
    ['an L1 table past the end', (view) => view.setBigUint64(40, 2n ** 40n), 'EINVAL', /L1 table ends at/],
    [
      'an L1 table at the end of numbers',
      (view) => view.setBigUint64(40, 2n ** 64n - 65536n),
      'EINVAL',
      /L1 table ends at/,
    ],
    ['a refcount table at an odd place', (view) => view.setBigUint64(48, 8n), 'EINVAL', /refcount table lies at/],
    ['a refcount table past the end', (view) => view.setBigUint64(48, 2n ** 50n), 'EINVAL', /refcount table ends at/],
    ['an overlong refcount table', (view) => view.setUint32(56, 0xffffffff), 'EFBIG', /refcount table has/],
    ['refcounts of 128 bits', (view) => view.setUint32(96, 7), 'EINVAL', /refcount order 7/],
    ['too many snapshots', (view) => view.setUint32(60, 65_537), 'EINVAL', /65537 internal snapshots/],
    [
      'a snapshot table at an odd place',
      (view) => {
        view.setUint32(60, 1);
        view.setBigUint64(64, 3n);
      },
      'EINVAL',
      /snapshot table lies at/,
    ],
    ['a short header', (view) => view.setUint32(100, 96), 'EINVAL', /header of 96 bytes/],
    ['an odd header', (view) => view.setUint32(100, 105), 'EINVAL', /header of 105 bytes/],
    ['a header beyond its cluster', (view) => view.setUint32(100, 0xfffffff8), 'EINVAL', /header of 4294967288 bytes/],
    ['a corrupt image', feature(1), 'EIO', /marked corrupt/],
    ['external data', feature(2), 'EOPNOTSUPP', /external file/],
    ['an unknown feature', feature(5), 'EOPNOTSUPP', /feature bit 5,/],
    ['the last unknown feature', feature(63), 'EOPNOTSUPP', /feature bit 63,/],
    ['a compression type without its feature', (_, bytes) => (bytes[104] = 1), 'EINVAL', /contradicts/],
    ['a feature without its compression type', feature(3), 'EINVAL', /contradicts/],
    [
      'an unknown compression type',
      (view, bytes) => {
        feature(3)(view);
        bytes[104] = 2;
      },
      'EOPNOTSUPP',
      /compression type 2/,
    ],
    ['an endless extension', extension(0xe2792aca, 0xffffffff), 'EINVAL', /extension 0xe2792aca of 4294967295 bytes/],
    ['an unknown extension across the name', extension(0x1234, 60), 'EINVAL', /extension 0x1234/],
    ['a long backing name', (view) => view.setUint32(16, 1024), 'EINVAL', /name has 1024 bytes/],
    [
      'a backing name beyond its cluster',
      (view) => view.setBigUint64(8, 65_530n),
      'EINVAL',
      /outside the first cluster/,
    ],
    ['a backing name far away', (view) => view.setBigUint64(8, 2n ** 63n), 'EINVAL', /outside the first cluster/],
    ['a backing name in the header', (view) => view.setBigUint64(8, 8n), 'EINVAL', /outside the first cluster/],
    [
      'a backing name that is not text',
      (view, bytes) => (bytes[Number(view.getBigUint64(8))] = 0xff),
      'EINVAL',
      /not UTF-8/,
    ],
    [
      'a zero byte in the backing name',
      (view, bytes) => (bytes[Number(view.getBigUint64(8))] = 0),
      'EINVAL',
      /zero byte/,
    ],
  ];
  for (const [what, change, code, words] of malformed) {
    test(`refuses ${what}`, () => {
      expect(() => decode(image(change))).toThrow(
        expect.objectContaining({ code, message: expect.stringMatching(words) }),
      );
    });
  }

  test('subclusters in small clusters', () => {
    const small = { ...GOOD, clusterBits: 13, size: 2 ** 20, l1Offset: 0x2000, refcountOffset: 0x4000 };
    expect(() => decode(image(feature(4), small))).toThrow(/extended L2 entries with clusters of 8192/);
  });

  test('an unknown feature by the name that the image gives it', () => {
    const bytes = image(
      (view, raw) => {
        feature(7)(view);
        extension(0x6803f857, 48)(view);
        raw[120] = 0;
        raw[121] = 7;
        raw.set(new TextEncoder().encode('quantum\x1b[2J'), 122);
      },
      { ...GOOD, backing: null },
    );
    expect(() => decode(bytes)).toThrow(/feature bit 7 \("quantum\?\[2J"\)/);
  });

  test('files that end within the header', () => {
    for (let length = 0; length < 112; length++) {
      expect(() => decode(image().subarray(0, length), length), `${length} bytes`).toThrow(/qcow2/);
    }
  });
});

test('refuses to write a backing name that does not fit', () => {
  const named =
    (name: string, clusterBits = 16) =>
    (): unknown =>
      encodeHeader({ ...GOOD, clusterBits, backing: { name, format: 'raw' } });
  expect(named('x'.repeat(1024))).toThrow(/1024 bytes, want 1 to 1023/);
  expect(named('')).toThrow(/0 bytes/);
  expect(named('x'.repeat(400), 9)).toThrow(/400 bytes, want 1 to 376/);
});
