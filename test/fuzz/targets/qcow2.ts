/** qcow2 images from an enemy, as restore points are opened: nothing but what lies in their own directory may be read
 *  through them. The image is `image.qcow2`; beside it are `base.raw` and `base.qcow2`, above it a file that is none of its
 *  business, and `link` leads there. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import zlib from 'node:zlib';
import { BioPool, READ, runBio } from '../../../src/block/bio.ts';
import { openReactor } from '../../../src/io/open.ts';
import type { Reactor } from '../../../src/io/reactor.ts';
import { encodeHeader } from '../../../src/qcow2/header.ts';
import { insideDirectory, openQcow2 } from '../../../src/qcow2/open.ts';
import type { Qcow2Device } from '../../../src/qcow2/device.ts';
import { assert } from '../../../src/util/assert.ts';
import { BlksnapError } from '../../../src/util/errors.ts';
import { KIB, MIB, TIB } from '../../../src/util/units.ts';
import { EDGES } from '../draw.ts';
import type { Draw } from '../draw.ts';
import { settled } from '../settled.ts';
import type { FuzzSubject, FuzzTarget } from '../target.ts';

/** What nobody may see through an image. */
const SECRET = 0xe5;
const READ_BYTES = MIB;
const EXTENT_CALLS = 6;
const PLACES = 12;

class Qcow2Subject implements FuzzSubject {
  readonly #reactor: Reactor;
  readonly #pool = new BioPool();
  readonly #outside = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-fuzz-qcow2-'));
  readonly #directory = path.join(this.#outside, 'inside');
  readonly #image = path.join(this.#directory, 'image.qcow2');

  static async open(): Promise<Qcow2Subject> {
    return new Qcow2Subject(await openReactor({ arenaBytes: 32 * MIB, cooperative: true }));
  }

  private constructor(reactor: Reactor) {
    this.#reactor = reactor;
    fs.mkdirSync(this.#directory);
    fs.writeFileSync(path.join(this.#outside, 'secret'), Buffer.alloc(64 * KIB, SECRET));
    fs.writeFileSync(path.join(this.#directory, 'base.raw'), Buffer.alloc(64 * KIB, 1));
    fs.writeFileSync(path.join(this.#directory, 'base.qcow2'), smallImage());
    fs.symlinkSync('../secret', path.join(this.#directory, 'link'));
  }

  async run(input: Uint8Array): Promise<void> {
    fs.writeFileSync(this.#image, input);
    const descriptors = fs.readdirSync('/proc/self/fd').length;
    try {
      const allowBacking = insideDirectory(this.#directory);
      const device = await openQcow2(this.#image, { reactor: this.#reactor, pool: this.#pool, allowBacking });
      try {
        if (device.size > 0) await this.#use(device);
      } finally {
        await device.close();
      }
    } catch (cause) {
      if (!(cause instanceof BlksnapError)) throw cause;
    }
    const { arena } = this.#reactor;
    await settled('the image has given everything back', () => arena.lentBytes === 0 && this.#pool.lent === 0);
    assert(fs.readdirSync('/proc/self/fd').length <= descriptors, 'no descriptor is left');
  }

  async #use(device: Qcow2Device): Promise<void> {
    const places = Array.from({ length: PLACES }, (_, i) => Math.floor(((device.size / PLACES) * i) / 512) * 512);
    for (const offset of places) await this.#read(device, offset);
    for (let offset = 0, calls = 0; offset < device.size && calls < EXTENT_CALLS; calls++) {
      const extents = await device.extents(offset, device.size - offset);
      const length = extents.reduce((sum, extent) => sum + extent.length, 0);
      assert(
        extents.every((extent) => extent.length > 0),
        'every extent has a length',
      );
      assert(length > 0 && offset + length <= device.size, 'extents cover the first byte, and nothing outside');
      offset += length;
    }
  }

  async #read(device: Qcow2Device, offset: number): Promise<void> {
    const { arena } = this.#reactor;
    const length = Math.min(READ_BYTES, device.size - offset);
    const at = arena.allocate(READ_BYTES);
    const bytes = arena.bytes.subarray(at, at + length);
    bytes.fill(0xa5);
    try {
      const status = await runBio(this.#pool, device, { op: READ, offset, length, at });
      if (status === 0) assert(!Buffer.from(bytes).includes(Buffer.alloc(512, SECRET)), 'nothing outside is read');
    } finally {
      arena.release(at);
    }
  }

  async close(): Promise<void> {
    await this.#reactor.close();
    fs.rmSync(this.#outside, { recursive: true });
  }
}

// --- the grammar ------------------------------------------------------------------------------

const BACKINGS = [
  'base.raw',
  'base.qcow2',
  'image.qcow2',
  './image.qcow2',
  '../secret',
  'link',
  '/etc/passwd',
  '/dev/zero',
  'none',
  'json:{}',
  'nbd://127.0.0.1/',
  '../inside/base.raw',
  '.',
  '',
];
const FORMATS = ['raw', 'raw', 'qcow2', 'qcow2', 'vmdk', ''];

/** A sound image of 64 KiB in clusters of 512 bytes. */
function smallImage(): Uint8Array {
  const bytes = Buffer.alloc(16 * 512);
  bytes.set(
    encodeHeader({ ...LAYOUT, clusterBits: 9, size: 32 * KIB, l1Offset: 512, l1Entries: 1, refcountOffset: 1024 }),
  );
  bytes.writeBigUInt64BE((1n << 63n) | 2048n, 512);
  bytes.writeBigUInt64BE((1n << 63n) | 4096n, 2048);
  bytes.fill(2, 4096, 4608);
  return bytes;
}

const LAYOUT = { refcountTableClusters: 1, compression: 'zlib', backing: null } as const;

/** A layout that opens, with tables full of what they should not have. */
function generate(draw: Draw): Uint8Array {
  const clusterBits = draw.one([9, 9, 12, 14, 16]);
  const cluster = 2 ** clusterBits;
  const clusters = draw.between(6, clusterBits > 12 ? 8 : 40);
  const l1Clusters = draw.between(1, 3);
  const l1Entries = draw.chance(0.9) ? (cluster * l1Clusters) / 8 : draw.one(EDGES);
  const coverage = cluster * (cluster / 8);
  const size = draw.one([64 * KIB, MIB, coverage, coverage * Math.min(l1Entries, 1000), 8 * TIB]);
  const name = draw.one(BACKINGS);
  const hasBacking = draw.chance(0.5) && name !== '' && clusterBits > 9;
  const backing = hasBacking ? { name, format: draw.one(FORMATS) } : null;
  const compression = draw.one(['zlib', 'zstd'] as const);
  const offset = (): number => draw.between(1, clusters) * cluster;
  const bytes = Buffer.alloc(clusters * cluster);
  bytes.set(
    encodeHeader({
      clusterBits,
      size: Math.min(size, coverage * l1Entries),
      l1Offset: cluster,
      l1Entries: l1Entries >>> 0,
      refcountOffset: draw.chance(0.9) ? 2 * cluster : offset(),
      refcountTableClusters: 1,
      compression,
      backing,
    }).subarray(0, bytes.length),
  );
  for (let at = cluster; at < cluster * (1 + l1Clusters); at += 8)
    if (draw.chance(0.8)) bytes.writeBigUInt64BE((1n << 63n) | BigInt(offset()), at);
  const tables = cluster * (1 + l1Clusters);
  for (let at = tables; at + 8 <= Math.min(bytes.length, tables + 3 * cluster); at += 8)
    writeEntry(draw, { bytes, at, clusterBits, host: offset() });
  const packed = compressed(draw.one([cluster, cluster - 1, cluster + 1, 64 * MIB]));
  packed.copy(bytes, bytes.length - cluster);
  return bytes;
}

const packs = new Map<number, Buffer>();

/** So many zeros; the largest are a bomb. */
function compressed(length: number): Buffer {
  const packed = packs.get(length) ?? zlib.deflateRawSync(new Uint8Array(length), { windowBits: 12 });
  packs.set(length, packed);
  return packed;
}

function writeEntry(
  draw: Draw,
  { bytes, at, clusterBits, host }: { bytes: Buffer; at: number; clusterBits: number; host: number },
): void {
  switch (draw.below(8)) {
    case 0:
      return;
    case 1:
      bytes.writeBigUInt64BE(1n, at);
      return;
    case 2:
    case 3: {
      const sectors = BigInt(draw.chance(0.5) ? draw.below(2 ** (clusterBits - 8)) : 2 ** (clusterBits - 8) - 1);
      const place = BigInt(draw.chance(0.8) ? bytes.length - 2 ** clusterBits : draw.below(bytes.length * 2));
      bytes.writeBigUInt64BE((1n << 62n) | (sectors << BigInt(70 - clusterBits)) | place, at);
      return;
    }
    case 4:
      bytes.writeBigUInt64BE(BigInt.asUintN(64, BigInt(draw.one(EDGES)) << BigInt(draw.below(60))), at);
      return;
    default:
      bytes.writeBigUInt64BE((1n << 63n) | BigInt(host), at);
  }
}

export const qcow2: FuzzTarget = { name: 'qcow2', generate, open: () => Qcow2Subject.open() };
