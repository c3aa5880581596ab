/** The qcow2 header: codec and checks. Pure: bytes in, a checked header out.
 *
 *      0 magic "QFI\xfb"      4 version           8 backing name offset   16 backing name length
 *     20 clusterBits         24 disk size        32 encryption            36 L1 entries
 *     40 L1 offset           48 refcount table   56 its clusters          60 internal snapshots
 *     64 snapshot table      (version 2 ends here; the rest is version 3)
 *     72 incompatible        80 compatible       88 autoclear features    96 refcount order
 *    100 header length      104 compression type
 *    then extensions {type, length, data padded to 8} up to type 0, then the backing file's name
 *
 *  Whatever comes out of `decodeHeader` is safe to use: tables lie inside the file, are aligned, and
 *  are no larger than the limits. What we cannot read is refused by name, never skipped. */

import { BlksnapError } from '../util/errors.ts';
import type { ErrorCode } from '../util/errors.ts';
import {
  l1Entries,
  MAX_BACKING_NAME_BYTES,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_OFFSET,
  MAX_REFCOUNT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  MIN_CLUSTER_BITS,
  MIN_EXTENDED_CLUSTER_BITS,
} from './format.ts';

const MAGIC = 0x5146_49fb;
/** The header, its extensions and the backing name are looked for in this much of the first cluster. */
export const HEADER_READ_BYTES = 65_536;
const V2_BYTES = 72;
const V3_BYTES = 104;
/** What we write: version 3 with a compression type, padded to 8. */
const WRITTEN_BYTES = 112;

const EXTENSION_END = 0;
const EXTENSION_BACKING_FORMAT = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES = 0x6803_f857;
const FEATURE_NAME_BYTES = 48;

const DIRTY = 0;
const MARKED_CORRUPT = 1;
const EXTERNAL_DATA = 2;
const COMPRESSION_TYPE = 3;
const EXTENDED_L2 = 4;
const FEATURE_NAMES = ['dirty', 'corrupt', 'external data file', 'compression type', 'extended L2 entries'] as const;

export type CompressionType = 'zlib' | 'zstd';

interface BackingReference {
  /** As written in the image: not yet resolved, not yet trusted. */
  readonly name: string;
  /** Null when the image does not say. */
  readonly format: string | null;
}

export interface Qcow2Header {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  /** Bytes of the disk. */
  readonly size: number;
  readonly l1Offset: number;
  /** Entries that the disk needs; the table may have more, which are not ours to read. */
  readonly l1Entries: number;
  readonly compression: CompressionType;
  readonly extendedL2: boolean;
  /** Refcounts may be wrong. Harmless to a reader. */
  readonly dirty: boolean;
  readonly backing: BackingReference | null;
}

/** Checks and decodes the first bytes of the file `name` of `fileBytes` bytes.
 *  Errors: EINVAL not qcow2, or a header that contradicts itself or the file; EOPNOTSUPP a feature that we
 *  do not read; EFBIG a size beyond the limits; EIO an image that is marked corrupt. */
export function decodeHeader(bytes: Uint8Array, fileBytes: number, name: string): Qcow2Header {
  return new HeaderDecoder(bytes, fileBytes, name).decode();
}

class HeaderDecoder {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #fileBytes: number;
  readonly #name: string;
  #clusterSize = 0;

  constructor(bytes: Uint8Array, fileBytes: number, name: string) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#fileBytes = fileBytes;
    this.#name = name;
  }

  decode(): Qcow2Header {
    if (this.#bytes.length < V2_BYTES || this.#view.getUint32(0) !== MAGIC) {
      this.#refuse('EINVAL', 'it does not start with a qcow2 header');
    }
    const version = this.#view.getUint32(4);
    if (version !== 2 && version !== 3) this.#refuse('EOPNOTSUPP', `version ${version}, want 2 or 3`);
    const clusterBits = this.#view.getUint32(20);
    if (clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS) {
      this.#refuse('EINVAL', `clusters of 2^${clusterBits} bytes, want 2^${MIN_CLUSTER_BITS} to 2^${MAX_CLUSTER_BITS}`);
    }
    this.#clusterSize = 2 ** clusterBits;
    const headerBytes = version === 2 ? V2_BYTES : this.#headerLength();
    const extensions = this.#extensions(headerBytes);
    const features = version === 2 ? 0n : this.#features(extensions.featureNames);
    const crypt = this.#view.getUint32(32);
    if (crypt !== 0) this.#refuse('EOPNOTSUPP', `it is encrypted (method ${crypt}); decrypt it with qemu-img convert`);
    const extendedL2 = has(features, EXTENDED_L2);
    if (extendedL2 && clusterBits < MIN_EXTENDED_CLUSTER_BITS) {
      this.#refuse('EINVAL', `extended L2 entries with clusters of ${this.#clusterSize} bytes, want 16384 or more`);
    }
    const size = this.#size();
    this.#checkRefcounts(version);
    this.#checkSnapshots();
    return {
      version,
      clusterBits,
      size,
      l1Offset: this.#u64(40),
      l1Entries: this.#checkL1(l1Entries(size, clusterBits, extendedL2)),
      compression: this.#compression(has(features, COMPRESSION_TYPE), headerBytes),
      extendedL2,
      dirty: has(features, DIRTY),
      backing: this.#backing(extensions.backingFormat),
    };
  }

  #headerLength(): number {
    const length = this.#bytes.length < V3_BYTES ? 0 : this.#view.getUint32(100);
    if (length < V3_BYTES || length % 8 !== 0 || length > this.#bytes.length || length > this.#clusterSize) {
      this.#refuse(
        'EINVAL',
        `header of ${length} bytes, want a multiple of 8 of at least ${V3_BYTES}, in the first cluster`,
      );
    }
    return length;
  }

  #features(names: Map<number, string>): bigint {
    const features = this.#view.getBigUint64(72);
    for (let bit = 0; bit < 64; bit++) {
      if (has(features, bit) && bit >= FEATURE_NAMES.length) {
        const label = names.get(bit);
        this.#refuse(
          'EOPNOTSUPP',
          `it needs feature bit ${bit}${label === undefined ? '' : ` ("${label}")`}, which is not known here`,
        );
      }
    }
    if (has(features, EXTERNAL_DATA))
      this.#refuse('EOPNOTSUPP', 'its data lies in an external file; convert it with qemu-img convert');
    if (has(features, MARKED_CORRUPT))
      this.#refuse('EIO', 'it is marked corrupt; repair it with qemu-img check -r all');
    return features;
  }

  /** Walks the extensions, which end at type 0, the backing name, or the first cluster's end. */
  #extensions(start: number): { backingFormat: string | null; featureNames: Map<number, string> } {
    const nameAt = this.#u64(8);
    const end = Math.min(nameAt === 0 ? MAX_OFFSET : nameAt, this.#clusterSize, this.#fileBytes);
    let backingFormat: string | null = null;
    let featureNames = new Map<number, string>();
    let position = start;
    while (position + 8 <= end) {
      if (position + 8 > this.#bytes.length)
        this.#refuse('EOPNOTSUPP', `header extensions pass ${HEADER_READ_BYTES} bytes`);
      const type = this.#view.getUint32(position);
      const length = this.#view.getUint32(position + 4);
      position += 8;
      if (type === EXTENSION_END) break;
      if (length > end - position)
        this.#refuse('EINVAL', `header extension 0x${type.toString(16)} of ${length} bytes passes ${end}`);
      if (type === EXTENSION_BACKING_FORMAT || type === EXTENSION_FEATURE_NAMES) {
        if (position + length > this.#bytes.length)
          this.#refuse('EOPNOTSUPP', `header extensions pass ${HEADER_READ_BYTES} bytes`);
        const data = this.#bytes.subarray(position, position + length);
        if (type === EXTENSION_BACKING_FORMAT) backingFormat = this.#text(data, 'backing format');
        else featureNames = incompatibleFeatureNames(data);
      }
      position += Math.ceil(length / 8) * 8;
    }
    return { backingFormat, featureNames };
  }

  #size(): number {
    const size = this.#u64(24);
    if (size > MAX_OFFSET) this.#refuse('EFBIG', 'its disk is larger than 8 PiB');
    if (size % 512 !== 0) this.#refuse('EINVAL', `its disk of ${size} bytes is not a multiple of 512`);
    return size;
  }

  #checkL1(needed: number): number {
    const entries = this.#view.getUint32(36);
    const bytes = entries * 8;
    if (bytes > MAX_L1_BYTES) this.#refuse('EFBIG', `its L1 table has ${bytes} bytes, want at most ${MAX_L1_BYTES}`);
    if (entries < needed) this.#refuse('EINVAL', `its L1 table has ${entries} entries, its disk needs ${needed}`);
    if (needed > 0) this.#checkTable('L1 table', this.#u64(40), needed * 8);
    return needed;
  }

  #checkRefcounts(version: number): void {
    const order = version === 2 ? 4 : this.#view.getUint32(96);
    if (order > 6) this.#refuse('EINVAL', `refcount order ${order}, want at most 6`);
    const bytes = this.#view.getUint32(56) * this.#clusterSize;
    if (bytes > MAX_REFCOUNT_TABLE_BYTES)
      this.#refuse('EFBIG', `its refcount table has ${bytes} bytes, want at most ${MAX_REFCOUNT_TABLE_BYTES}`);
    this.#checkTable('refcount table', this.#u64(48), 8);
  }

  #checkSnapshots(): void {
    const count = this.#view.getUint32(60);
    if (count > MAX_SNAPSHOTS) this.#refuse('EINVAL', `${count} internal snapshots, want at most ${MAX_SNAPSHOTS}`);
    if (count > 0) this.#checkTable('snapshot table', this.#u64(64), 40 * count);
  }

  #checkTable(what: string, offset: number, bytes: number): void {
    if (offset === 0 || offset % this.#clusterSize !== 0) {
      this.#refuse('EINVAL', `its ${what} lies at offset ${offset}, want a multiple of ${this.#clusterSize} above 0`);
    }
    if (offset + bytes > this.#fileBytes) {
      this.#refuse(
        'EINVAL',
        `its ${what} ends at ${offset + bytes}, the file at ${this.#fileBytes}; the file was cut short or is damaged`,
      );
    }
  }

  #compression(flagged: boolean, headerBytes: number): CompressionType {
    const type = headerBytes > V3_BYTES ? this.#bytes[V3_BYTES]! : 0;
    if (flagged !== (type !== 0)) this.#refuse('EINVAL', `compression type ${type} contradicts the feature bit`);
    if (type > 1) this.#refuse('EOPNOTSUPP', `compression type ${type}, want 0 (zlib) or 1 (zstd)`);
    return type === 0 ? 'zlib' : 'zstd';
  }

  #backing(format: string | null): BackingReference | null {
    const offset = this.#u64(8);
    const length = this.#view.getUint32(16);
    if (offset === 0 || length === 0) return null;
    if (length > MAX_BACKING_NAME_BYTES)
      this.#refuse('EINVAL', `its backing file's name has ${length} bytes, want at most ${MAX_BACKING_NAME_BYTES}`);
    if (offset < V2_BYTES || offset + length > Math.min(this.#clusterSize, this.#bytes.length)) {
      this.#refuse('EINVAL', `its backing file's name lies at ${offset}, outside the first cluster`);
    }
    return { name: this.#text(this.#bytes.subarray(offset, offset + length), 'backing file name'), format };
  }

  #text(bytes: Uint8Array, what: string): string {
    try {
      const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
      if (!text.includes('\0')) return text;
    } catch (error) {
      this.#refuse('EINVAL', `its ${what} is not UTF-8 text`, error);
    }
    return this.#refuse('EINVAL', `its ${what} contains a zero byte`);
  }

  /** Values above MAX_OFFSET come out inexact; every use is compared with a limit. */
  #u64(position: number): number {
    return this.#view.getUint32(position) * 2 ** 32 + this.#view.getUint32(position + 4);
  }

  #refuse(code: ErrorCode, reason: string, cause?: unknown): never {
    throw new BlksnapError(code, `Cannot read qcow2 image "${this.#name}": ${reason}`, { cause });
  }
}

function has(features: bigint, bit: number): boolean {
  return ((features >> BigInt(bit)) & 1n) === 1n;
}

function incompatibleFeatureNames(table: Uint8Array): Map<number, string> {
  const names = new Map<number, string>();
  for (let at = 0; at + FEATURE_NAME_BYTES <= table.length; at += FEATURE_NAME_BYTES) {
    if (table[at] !== 0) continue;
    const name = new TextDecoder().decode(table.subarray(at + 2, at + FEATURE_NAME_BYTES)).replace(/\0.*$/s, '');
    names.set(table[at + 1]!, name.replace(/[^\x20-\x7e]/g, '?'));
  }
  return names;
}

export interface HeaderToWrite {
  readonly clusterBits: number;
  readonly size: number;
  readonly l1Offset: number;
  readonly l1Entries: number;
  readonly refcountOffset: number;
  readonly refcountTableClusters: number;
  readonly compression: CompressionType;
  readonly backing: { readonly name: string; readonly format: string } | null;
}

/** A version 3 header with its extensions and the backing name, to be written at offset 0.
 *  Errors: EINVAL for a backing name that is empty or does not fit. */
export function encodeHeader(header: HeaderToWrite): Uint8Array {
  const encoder = new TextEncoder();
  const name = encoder.encode(header.backing?.name ?? '');
  const format = encoder.encode(header.backing?.format ?? '');
  const extensionBytes = header.backing === null ? 8 : 8 + Math.ceil(format.length / 8) * 8 + 8;
  const nameAt = WRITTEN_BYTES + extensionBytes;
  const bytes = new Uint8Array(nameAt + name.length);
  const room = Math.min(MAX_BACKING_NAME_BYTES, 2 ** header.clusterBits - nameAt);
  if (header.backing !== null && (name.length === 0 || name.length > room)) {
    throw new BlksnapError(
      'EINVAL',
      `Cannot write a qcow2 image over "${header.backing.name}": that name has ${name.length} bytes, want 1 to ${room}`,
    );
  }
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC);
  view.setUint32(4, 3);
  view.setUint32(20, header.clusterBits);
  view.setBigUint64(24, BigInt(header.size));
  view.setUint32(36, header.l1Entries);
  view.setBigUint64(40, BigInt(header.l1Offset));
  view.setBigUint64(48, BigInt(header.refcountOffset));
  view.setUint32(56, header.refcountTableClusters);
  view.setUint32(96, 4);
  view.setUint32(100, WRITTEN_BYTES);
  if (header.compression === 'zstd') {
    view.setBigUint64(72, 1n << BigInt(COMPRESSION_TYPE));
    bytes[V3_BYTES] = 1;
  }
  if (header.backing !== null) {
    view.setBigUint64(8, BigInt(nameAt));
    view.setUint32(16, name.length);
    view.setUint32(WRITTEN_BYTES, EXTENSION_BACKING_FORMAT);
    view.setUint32(WRITTEN_BYTES + 4, format.length);
    bytes.set(format, WRITTEN_BYTES + 8);
    bytes.set(name, nameAt);
  }
  return bytes;
}
