/** Writes a qcow2 image as a stream: clusters in any order of the disk, each once, straight from arena
 *  memory to ascending offsets of the file; tables behind them; the header last of all.
 *
 *      header | data, or compressed packs, in the order written | L2 tables | L1 | refcount table | refcount blocks
 *
 *  Many writes may be under way at once. Memory: the L2 tables, 8 bytes per cluster of every stretch that
 *  has data. The file is version 3 with 16-bit refcounts, every one of them exact: qemu-img check finds
 *  neither errors nor leaks. The caller renames it to where it belongs and syncs the directory. */

import fs from 'node:fs';
import { BlksnapError } from '../util/errors.ts';
import type { Reactor } from '../io/reactor.ts';
import { clusterCodec } from './compression.ts';
import type { ClusterCodec } from './compression.ts';
import { ClusterPacker } from './cluster-packer.ts';
import { FileLog } from './file-log.ts';
import type { FileChecksums } from './file-log.ts';
import {
  encodeL1,
  l1Entries,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_OFFSET,
  MIN_CLUSTER_BITS,
  refcountClusters,
} from './format.ts';
import { GuestTables } from './guest-tables.ts';
import { encodeHeader } from './header.ts';
import type { HeaderToWrite } from './header.ts';
import { TableStage } from './table-stage.ts';

export interface Qcow2WriterOptions {
  readonly reactor: Reactor;
  /** Bytes of the disk, a multiple of 512. */
  readonly size: number;
  /** Default 16, or what a disk beyond 2 PiB needs. */
  readonly clusterBits?: number;
  /** Written into the image as given: relative to the image's directory, or absolute. */
  readonly backing?: { readonly name: string; readonly format: 'qcow2' | 'raw' };
  readonly compression?: 'none' | 'zlib' | 'zstd';
}

export interface Qcow2Result {
  /** Length of the file. */
  readonly fileBytes: number;
  /** Bytes of the disk that were stored as data, before compression. */
  readonly dataBytes: number;
  readonly checksums: FileChecksums;
}

export class Qcow2Writer {
  readonly #reactor: Reactor;
  readonly #size: number;
  readonly #clusterBits: number;
  readonly #clusterSize: number;
  readonly #backing: HeaderToWrite['backing'];
  readonly #log: FileLog;
  readonly #tables: GuestTables;
  readonly #codec: ClusterCodec | null;
  readonly #packer: ClusterPacker | null;
  #dataBytes = 0;
  #writes = 0;
  #whenIdle: (() => void) | null = null;
  #ended = false;

  /** Creates the image's file, mode 0600. Errors: EEXIST there is one; EINVAL or EFBIG for a size, clusters or
   *  backing name that the format cannot have; EOPNOTSUPP zstd where it is not to be had. */
  static async create(path: string, options: Qcow2WriterOptions): Promise<Qcow2Writer> {
    const clusterBits = options.clusterBits ?? defaultClusterBits(options.size);
    checkGeometry(path, options.size, clusterBits);
    const compression = options.compression ?? 'none';
    const codec = compression === 'none' ? null : clusterCodec(compression);
    // Finds out now rather than after hours of writing whether the backing name fits.
    const header = {
      clusterBits,
      size: options.size,
      l1Offset: 0,
      l1Entries: 0,
      refcountOffset: 0,
      refcountTableClusters: 0,
    };
    encodeHeader({ ...header, compression: codec?.type ?? 'zlib', backing: options.backing ?? null });
    const writer = new Qcow2Writer(path, options, clusterBits, codec);
    try {
      await writer.#packer?.open();
    } catch (cause) {
      await writer.abort();
      throw cause;
    }
    return writer;
  }

  private constructor(path: string, options: Qcow2WriterOptions, clusterBits: number, codec: ClusterCodec | null) {
    this.#reactor = options.reactor;
    this.#size = options.size;
    this.#clusterBits = clusterBits;
    this.#clusterSize = 2 ** clusterBits;
    this.#backing = options.backing ?? null;
    this.#log = new FileLog(options.reactor, path, this.#clusterSize);
    this.#tables = new GuestTables(clusterBits);
    this.#codec = codec;
    this.#packer =
      codec === null ? null : new ClusterPacker(options.reactor.arena, this.#log, this.#tables, clusterBits);
  }

  /** Stores data. `offset` is a multiple of the cluster size, and so is `length` except up to the disk's end.
   *  The memory at `at` must stay untouched until the promise resolves. Errors: EEXIST written before;
   *  EINVAL out of place; ENOSPC and the like. After a failed write there is only `abort`. */
  async write(offset: number, at: number, length: number): Promise<void> {
    const first = this.#checkRange(offset, length);
    this.#tables.claim(first, Math.ceil(length / this.#clusterSize), this.#log.path);
    this.#dataBytes += length;
    this.#writes++;
    try {
      if (this.#packer === null || this.#codec === null) await this.#writePlain(first, at, length);
      else await this.#writeCompressed(first, at, length, this.#packer, this.#codec);
    } finally {
      this.#writes--;
      if (this.#writes === 0) this.#whenIdle?.();
    }
  }

  /** Makes the range read as zeroes, whatever the backing file holds. Alignment as for write. */
  async zero(offset: number, length: number): Promise<void> {
    const first = this.#checkRange(offset, length);
    if (this.#backing === null) return;
    const count = Math.ceil(length / this.#clusterSize);
    this.#tables.requireUnset(first, count, this.#log.path);
    for (let cluster = first; cluster < first + count; cluster++) this.#tables.setZero(cluster);
  }

  /** Writes the tables and the header, and syncs. No write may be under way. */
  async finish(): Promise<Qcow2Result> {
    this.#checkOpen();
    if (this.#writes > 0)
      throw new BlksnapError(
        'EBUSY',
        `Cannot finish "${this.#log.path}": ${this.#writes} writes are under way; wait for them`,
      );
    this.#ended = true;
    try {
      this.#packer?.flush();
      const stage = new TableStage(this.#reactor, this.#log, this.#clusterSize);
      let header: HeaderToWrite;
      try {
        await stage.open();
        header = await this.#writeTables(stage);
      } finally {
        await this.#log.whenIdle();
        stage.close();
      }
      const checksums = await this.#log.complete(encodeHeader(header));
      return { fileBytes: this.#log.end, dataBytes: this.#dataBytes, checksums };
    } catch (cause) {
      fs.rmSync(this.#log.path, { force: true });
      throw cause;
    } finally {
      await this.#close();
    }
  }

  /** Gives up: removes the file. Waits for writes under way. Safe to call twice, and after finish, where it does nothing. */
  async abort(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    this.#log.fail(new BlksnapError('ECANCELED', `Cannot write "${this.#log.path}": it was given up`));
    fs.rmSync(this.#log.path, { force: true });
    if (this.#writes > 0) await new Promise<void>((resolve) => (this.#whenIdle = resolve));
    await this.#close();
  }

  async #writePlain(first: number, at: number, length: number): Promise<void> {
    const host = this.#log.end;
    const writing = this.#log.append(at, length);
    const count = Math.ceil(length / this.#clusterSize);
    for (let i = 0; i < count; i++) this.#tables.setData(first + i, host + i * this.#clusterSize);
    await writing;
  }

  /** Clusters that do not shrink are stored as they are, runs of them in one piece. */
  async #writeCompressed(
    first: number,
    at: number,
    length: number,
    packer: ClusterPacker,
    codec: ClusterCodec,
  ): Promise<void> {
    const size = this.#clusterSize;
    const data = this.#reactor.arena.bytes.subarray(at, at + length);
    const plain: Array<Promise<void>> = [];
    let done = 0;
    const storePlain = (end: number): void => {
      if (end > done) plain.push(this.#writePlain(first + done / size, at + done, end - done));
      done = end;
    };
    try {
      for (let start = 0; start < length; start += size) {
        await packer.room();
        const compressed = codec.compress(wholeCluster(data.subarray(start, start + size), size));
        if (compressed === null) continue;
        storePlain(start);
        packer.add(first + start / size, compressed);
        done = Math.min(start + size, length);
      }
      storePlain(length);
    } finally {
      await Promise.allSettled(plain);
    }
    this.#log.checkFailure();
  }

  async #writeTables(stage: TableStage): Promise<HeaderToWrite> {
    const entries = l1Entries(this.#size, this.#clusterBits, false);
    // The L2 tables, and behind them the L1 table that says where they are.
    const l1 = new DataView(new ArrayBuffer(entries * 8));
    for (const [index, table] of this.#tables.inOrder()) {
      encodeL1(l1, index * 8, stage.end);
      await stage.put(table);
    }
    const l1Offset = stage.end;
    await stage.put(l1);
    await stage.pad();
    const refcountOffset = stage.end;
    const used = refcountOffset / this.#clusterSize;
    const { blocks, table } = refcountClusters(used, this.#clusterBits);
    const pointers = new DataView(new ArrayBuffer(blocks * 8));
    for (let block = 0; block < blocks; block++) {
      pointers.setBigUint64(block * 8, BigInt(refcountOffset + (table + block) * this.#clusterSize));
    }
    await stage.put(pointers);
    await stage.pad();
    for (let block = 0; block < blocks; block++) await stage.put(this.#refcountBlock(block, used + table + blocks));
    await stage.flush();
    return {
      clusterBits: this.#clusterBits,
      size: this.#size,
      l1Offset,
      l1Entries: entries,
      refcountOffset,
      refcountTableClusters: table,
      compression: this.#codec?.type ?? 'zlib',
      backing: this.#backing,
    };
  }

  /** One cluster of refcounts: 1 for every cluster of the file, more where compressed clusters share one. */
  #refcountBlock(block: number, clusters: number): DataView {
    const perBlock = this.#clusterSize / 2;
    const view = new DataView(new ArrayBuffer(this.#clusterSize));
    const first = block * perBlock;
    const shared = this.#packer?.refcounts;
    for (let i = 0; i < Math.min(perBlock, clusters - first); i++) view.setUint16(i * 2, shared?.get(first + i) ?? 1);
    return view;
  }

  #checkRange(offset: number, length: number): number {
    this.#checkOpen();
    const end = offset + length;
    if (
      offset < 0 ||
      length <= 0 ||
      end > this.#size ||
      offset % this.#clusterSize !== 0 ||
      (length % this.#clusterSize !== 0 && end !== this.#size)
    ) {
      throw new BlksnapError(
        'EINVAL',
        `Cannot write "${this.#log.path}": ${length} bytes at ${offset}, want whole clusters of ${this.#clusterSize} inside a disk of ${this.#size}`,
      );
    }
    return offset / this.#clusterSize;
  }

  #checkOpen(): void {
    if (this.#ended) throw new BlksnapError('EBADF', `Cannot write "${this.#log.path}": it is finished`);
    this.#log.checkFailure();
  }

  async #close(): Promise<void> {
    await this.#log.whenIdle();
    this.#packer?.close();
    this.#log.close();
  }
}

function wholeCluster(data: Uint8Array, size: number): Uint8Array {
  if (data.length === size) return data;
  const whole = new Uint8Array(size);
  whole.set(data);
  return whole;
}

function defaultClusterBits(size: number): number {
  let bits = 16;
  while (l1Entries(size, bits, false) * 8 > MAX_L1_BYTES) bits++;
  return bits;
}

function checkGeometry(path: string, size: number, clusterBits: number): void {
  const refuse = (code: 'EINVAL' | 'EFBIG', reason: string): never => {
    throw new BlksnapError(code, `Cannot create qcow2 image "${path}": ${reason}`);
  };
  if (!Number.isInteger(size) || size <= 0 || size % 512 !== 0)
    refuse('EINVAL', `size ${size}, want a multiple of 512 above 0`);
  if (size > MAX_OFFSET) refuse('EFBIG', `size ${size}, want at most 8 PiB`);
  if (!Number.isInteger(clusterBits) || clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS) {
    refuse('EINVAL', `clusters of 2^${clusterBits} bytes, want 2^${MIN_CLUSTER_BITS} to 2^${MAX_CLUSTER_BITS}`);
  }
  const l1Bytes = l1Entries(size, clusterBits, false) * 8;
  if (l1Bytes > MAX_L1_BYTES)
    refuse('EFBIG', `its L1 table would have ${l1Bytes} bytes, want at most ${MAX_L1_BYTES}; use larger clusters`);
}
