/** A qcow2 image as a read-only block device, over whatever lies under it.
 *
 *  A bio is served run by run: a run of contiguous clusters is one read straight into the bio's memory;
 *  what this image does not hold is asked of the backing device; zeroes are filled in. Hot path: submit,
 *  bioProgress, bioEnded, while the tables are cached and the cluster is not compressed. Missing tables and
 *  compressed clusters take the slow path (promises) and come back to `#advance`.
 *
 *  The image must not change while it is open: nothing here looks twice. */

import fs from 'node:fs';
import { assert, unreachable } from '../util/assert.ts';
import { BlksnapError, ERRNO, errnoError } from '../util/errors.ts';
import { DISCARD, FLUSH, rangeError, READ, WRITE, WRITE_ZEROES } from '../block/bio.ts';
import type { Bio, BioDriver, BioOwner, BioPool } from '../block/bio.ts';
import { pushExtent } from '../block/device.ts';
import type { BlockDevice, Capabilities, Extent } from '../block/device.ts';
import type { OpenFile } from '../io/files.ts';
import type { Reactor } from '../io/reactor.ts';
import { ClusterMap, MISSING } from './cluster-map.ts';
import type { LookCount } from './cluster-map.ts';
import { clusterCodec } from './compression.ts';
import type { ClusterCodec } from './compression.ts';
import type { CompressedReader } from './compressed-reader.ts';
import { COMPRESSED, CORRUPT, DATA, UNALLOCATED, ZERO } from './format.ts';
import type { EntryState } from './format.ts';
import type { Qcow2Header } from './header.ts';
import { TableFile } from './table-cache.ts';
import type { TableCache } from './table-cache.ts';

/** Extents per answer: a bound on one call's work. */
const MAX_EXTENTS = 8192;
/** Table entries that one answer looks at, in the whole chain. Tables may share clusters, so that a small file describes a
 *  disk of petabytes with as many runs as it has clusters. */
const MAX_LOOKS = 2 ** 18;

/** What one image itself holds. `unallocated` is left to its backing file. */
export interface OwnExtent {
  readonly length: number;
  readonly kind: 'data' | 'zero' | 'unallocated';
}

/** Hears of data of the disk that lies in a file as it is. */
type DataFound = (run: {
  readonly file: string;
  readonly place: number;
  readonly offset: number;
  readonly length: number;
}) => void;

export interface Qcow2DeviceOptions {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  readonly tables: TableCache;
  readonly compressed: CompressedReader;
  readonly count: LookCount;
  readonly file: OpenFile;
  readonly fileBytes: number;
  readonly header: Qcow2Header;
  /** The device's to close. Null: what is unallocated reads as zeroes. */
  readonly backing: BlockDevice | null;
  /** Closes what the chain shares; given to its top only. */
  readonly onClose: () => void;
}

export class Qcow2Device implements BlockDevice, BioOwner, BioDriver {
  readonly name: string;
  readonly size: number;
  readonly logicalBlockSize: number;
  readonly physicalBlockSize: number;
  readonly readOnly = true;
  readonly capabilities: Capabilities = {
    flush: true,
    fua: false,
    discard: false,
    writeZeroes: false,
    fastZero: false,
    rotational: false,
  };
  readonly clusterSize: number;
  readonly backing: BlockDevice | null;

  readonly #reactor: Reactor;
  readonly #pool: BioPool;
  readonly #file: OpenFile;
  readonly #tables: TableFile;
  readonly #map: ClusterMap;
  readonly #count: LookCount;
  readonly #compressed: CompressedReader;
  readonly #codec: ClusterCodec;
  readonly #onClose: () => void;
  /** The child bio that is being submitted to the backing device, until it ended or is on its way. */
  #submitting: Bio | null = null;
  #closed = false;

  constructor(options: Qcow2DeviceOptions) {
    const { header, backing, file } = options;
    this.name = file.path;
    this.size = header.size;
    this.clusterSize = 2 ** header.clusterBits;
    this.logicalBlockSize = Math.max(512, backing?.logicalBlockSize ?? 512);
    this.physicalBlockSize = Math.max(4096, this.logicalBlockSize);
    this.backing = backing;
    this.#reactor = options.reactor;
    this.#pool = options.pool;
    this.#file = file;
    this.#tables = new TableFile(options.tables, file, this.clusterSize);
    this.#count = options.count;
    this.#map = new ClusterMap(header, this.#tables, options);
    this.#compressed = options.compressed;
    this.#codec = clusterCodec(header.compression);
    this.#onClose = options.onClose;
  }

  submit(bio: Bio): void {
    const error = rangeError(bio, this.size, true);
    if (error !== 0) {
      bio.end(error);
      return;
    }
    switch (bio.op) {
      case READ:
        bio.progress = 0;
        this.#advance(bio);
        return;
      case FLUSH:
        bio.end(0);
        return;
      case WRITE:
      case DISCARD:
      case WRITE_ZEROES:
        assert(false, 'a read-only device refuses changes');
        return;
      default:
        unreachable(bio.op);
    }
  }

  /** Serves the bio from where it is, until it waits for something or ends. */
  #advance(bio: Bio): void {
    const map = this.#map;
    while (bio.progress < bio.length) {
      const offset = bio.offset + bio.progress;
      const kind = map.find(offset, bio.length - bio.progress);
      switch (kind) {
        case DATA:
          bio.driver = this;
          this.#reactor.read(this.#file.fd, bio.at + bio.progress, map.length, map.host, bio);
          return;
        case ZERO:
          this.#fillZero(bio, map.length);
          break;
        case UNALLOCATED:
          if (!this.#readBacking(bio, offset, map.length)) return;
          break;
        case COMPRESSED: {
          const bytes = this.#compressed.kept(this.#file, map.host);
          if (bytes === null) {
            void this.#readCompressed(bio);
            return;
          }
          this.#copy(bio, bytes, map.length);
          break;
        }
        case MISSING:
          void this.#loadTable(bio, map.slice);
          return;
        case CORRUPT:
          bio.end(ERRNO.EIO);
          return;
        default:
          unreachable(kind);
      }
    }
    bio.end(0);
  }

  #fillZero(bio: Bio, length: number): void {
    const at = bio.at + bio.progress;
    this.#reactor.arena.bytes.fill(0, at, at + length);
    bio.progress += length;
  }

  #copy(bio: Bio, cluster: Uint8Array, length: number): void {
    const inCluster = (bio.offset + bio.progress) % this.clusterSize;
    this.#reactor.arena.bytes.set(cluster.subarray(inCluster, inCluster + length), bio.at + bio.progress);
    bio.progress += length;
  }

  /** Reads what this image does not hold. True when the bio goes on at once, false when it waits or has ended. */
  #readBacking(bio: Bio, offset: number, length: number): boolean {
    const backing = this.backing;
    if (backing === null || offset >= backing.size) {
      this.#fillZero(bio, length);
      return true;
    }
    const child = this.#pool.get(READ, offset, Math.min(length, backing.size - offset), bio.at + bio.progress, 0, this);
    child.tag = bio;
    // A child that ends inside submit is noticed here, not by recursion: an image chooses how many runs there are.
    this.#submitting = child;
    backing.submit(child);
    if (this.#submitting === child) {
      this.#submitting = null;
      return false;
    }
    return this.#takeBack(child, bio);
  }

  bioEnded(child: Bio): void {
    if (this.#submitting === child) {
      this.#submitting = null;
      return;
    }
    const bio = child.tag as Bio;
    if (this.#takeBack(child, bio)) this.#advance(bio);
  }

  #takeBack(child: Bio, bio: Bio): boolean {
    const { status, length } = child;
    this.#pool.put(child);
    bio.progress += length;
    if (status === 0) return true;
    bio.end(status);
    return false;
  }

  /** A read of clusters ended; `#advance` goes on behind it, also when it was short. */
  bioProgress(bio: Bio, result: number): void {
    if (result > 0) {
      bio.progress += result;
      this.#advance(bio);
    } else {
      bio.end(result === 0 ? ERRNO.EIO : -result);
    }
  }

  async #loadTable(bio: Bio, slice: number): Promise<void> {
    const status = await this.#tables.load(slice);
    if (status === 0) this.#advance(bio);
    else bio.end(status);
  }

  async #readCompressed(bio: Bio): Promise<void> {
    const { host, hostLength, length } = this.#map;
    const { clusterSize } = this;
    const bytes = await this.#compressed.read({ file: this.#file, codec: this.#codec, clusterSize, host, hostLength });
    if (bytes === null) {
      bio.end(ERRNO.EIO);
      return;
    }
    this.#copy(bio, bytes, length);
    this.#advance(bio);
  }

  /** What this image itself holds of the range, in order; covers at least the first byte. Errors: EIO. */
  async ownExtents(offset: number, length: number): Promise<OwnExtent[]> {
    const list: OwnExtent[] = [];
    const end = Math.min(offset + length, this.size);
    const lastLook = this.#count.looks + MAX_LOOKS;
    for (let at = offset; at < end && list.length < MAX_EXTENTS && (at === offset || this.#count.looks < lastLook);) {
      const found = this.#map.find(at, end - at);
      if (found === MISSING) {
        const { slice } = this.#map;
        const status = await this.#tables.load(slice);
        if (status !== 0) throw errnoError(status, `Cannot read the table at ${slice} of "${this.name}"`);
        continue;
      }
      const kind = this.#ownKind(found);
      const run = this.#map.length;
      const last = list.at(-1);
      if (last?.kind === kind) list[list.length - 1] = { kind, length: last.length + run };
      else list.push({ kind, length: run });
      at += run;
      if (this.#map.cutShort) break;
    }
    return list;
  }

  /** Tells, in order, where the chain's files hold the data of [offset, offset + length) of the disk. False when something of
   *  it does not lie in one of them as it is: it is compressed, in a raw base, or damaged. */
  async locate(offset: number, length: number, found: DataFound): Promise<boolean> {
    const end = offset + length;
    for (let at = offset; at < end;) {
      const kind = this.#map.find(at, end - at);
      if (kind === MISSING) {
        if ((await this.#tables.load(this.#map.slice)) !== 0) return false;
        continue;
      }
      const run = this.#map.length;
      if (kind === DATA) found({ file: this.name, place: this.#map.host, offset: at, length: run });
      else if (kind === UNALLOCATED) {
        if (!(await this.#locateBelow(at, run, found))) return false;
      } else if (kind !== ZERO) return false;
      at += run;
    }
    return true;
  }

  async #locateBelow(offset: number, length: number, found: DataFound): Promise<boolean> {
    const { backing } = this;
    if (backing === null || offset >= backing.size) return true;
    return backing instanceof Qcow2Device && backing.locate(offset, Math.min(length, backing.size - offset), found);
  }

  #ownKind(kind: EntryState): OwnExtent['kind'] {
    switch (kind) {
      case DATA:
      case COMPRESSED:
        return 'data';
      case ZERO:
        return 'zero';
      case UNALLOCATED:
        return 'unallocated';
      case CORRUPT:
        throw new BlksnapError(
          'EIO',
          `Cannot read "${this.name}": its mapping of offset ${this.#map.damagedOffset} is damaged; see qemu-img check`,
        );
    }
  }

  /** The whole chain's states: a hole is what no image holds, zero what one of them says is zero. */
  async extents(offset: number, length: number): Promise<Extent[]> {
    const list: Extent[] = [];
    const lastLook = this.#count.looks + MAX_LOOKS;
    let at = offset;
    for (const own of await this.ownExtents(offset, length)) {
      if (own.kind !== 'unallocated') pushExtent(list, own.length, false, own.kind === 'zero');
      else if (!(await this.#backingExtents(list, at, at + own.length))) break;
      if (list.length >= MAX_EXTENTS || this.#count.looks >= lastLook) break;
      at += own.length;
    }
    return list;
  }

  /** Adds the backing device's extents from `offset` on; past its end, a hole. False when it told of less than all up to
   *  `end`. */
  async #backingExtents(list: Extent[], offset: number, end: number): Promise<boolean> {
    const { backing } = this;
    const backed = backing === null ? offset : Math.min(end, backing.size);
    let at = offset;
    for (const extent of backing === null || at >= backed ? [] : await backing.extents(at, backed - at)) {
      const inside = Math.min(extent.length, backed - at);
      if (inside > 0) pushExtent(list, inside, extent.hole, extent.zero);
      at += inside;
    }
    if (at < backed) return false;
    if (at < end) pushExtent(list, end - at, true, true);
    return true;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    fs.closeSync(this.#file.fd);
    await this.backing?.close();
    this.#onClose();
  }
}
