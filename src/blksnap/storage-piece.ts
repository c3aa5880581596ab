/** One piece of a diff storage: a place, filled from its start, grown in portions ahead of need up to
 *  its limit. Positions here are the piece's own, from 0. */

import fs from 'node:fs';
import { ERRNO } from '../util/errors.ts';
import { MIB } from '../util/units.ts';
import { ALLOCATE_RESERVE, completed } from '../io/reactor.ts';
import type { Reactor } from '../io/reactor.ts';
import { freeBytes } from '../io/files.ts';
import { CHUNK } from './chunk-table.ts';
import { releaseStoragePlace } from './storage-place.ts';
import type { StoragePlace } from './storage-place.ts';
import { SLAB_POSITIONS, StorageSlabs } from './storage-slabs.ts';

const SMALLEST_PORTION = 1 * MIB;

export interface StoragePieceOptions {
  readonly path: string;
  readonly place: StoragePlace;
  /** Bytes; Infinity for as much as the place holds. */
  readonly limitBytes: number;
  readonly portionBytes: number;
  /** Chunks at its start that are in use already; default 0. */
  readonly used?: number;
}

export class StoragePiece {
  readonly path: string;
  readonly fd: number;
  /** The storage's position of the first chunk; set when the piece's turn comes, and above all given out before. */
  base = 0;
  readonly #reactor: Reactor;
  readonly #o: StoragePieceOptions;
  #limitBytes: number;
  /** What old data is read straight into; null where there is no such memory. Its chunks have the first positions. */
  readonly slabs: StorageSlabs | null;
  /** Chunks reserved so far, those in use, and the position after all that the file has. */
  #reserved = 0;
  #used = 0;
  #next = 0;
  #freed = 0;
  #reserving = false;
  #lost = 0;
  /** The place has no more room. */
  #full = false;
  /** Hears that there is no growing any more. */
  onFull: () => void = () => {};
  /** Hears, whenever somebody asks, that something stored here was lost. */
  onLost: (errno: number) => void = () => {};

  constructor(reactor: Reactor, options: StoragePieceOptions) {
    this.#reactor = reactor;
    this.#o = options;
    this.path = options.path;
    this.fd = options.place.fd;
    this.#limitBytes = Math.min(options.limitBytes, options.place.sizeBytes);
    this.#used = this.#reserved = options.used ?? 0;
    const { slabs } = options.place;
    this.slabs = slabs === undefined ? null : new StorageSlabs(slabs);
    // One is left out: no row of positions spans both.
    this.#next = this.slabs === null ? this.#used : SLAB_POSITIONS + 1;
  }

  get kind(): StoragePlace['kind'] {
    return this.#o.place.kind;
  }

  /** Made for the storage, and to be removed with it. */
  get owned(): boolean {
    return this.#o.place.owned !== null;
  }

  get limitBytes(): number {
    return this.#limitBytes;
  }

  /** Chunks given out. */
  get used(): number {
    return this.#used;
  }

  /** The first position that was never given out. */
  get next(): number {
    return this.#next;
  }

  get reservedBytes(): number {
    return Math.max(this.#reserved, this.#used) * CHUNK;
  }

  /** What is stored is in memory, and read at once. */
  get inMemory(): boolean {
    return this.#o.place.kind === 'memory';
  }

  /** 0, or the errno with which something stored here was lost on its way from the page cache to the device. */
  lost(): number {
    // The kernel tells it once.
    if (!this.inMemory && this.#lost === 0) this.#lost = -this.#reactor.writebackError(this.fd);
    if (this.#lost !== 0) this.onLost(this.#lost);
    return this.#lost;
  }

  /** What is stored outlives the machine. 0 or an errno. */
  async sync(): Promise<number> {
    const status = -(await completed((c) => this.#reactor.sync(this.fd, c)));
    if (status !== 0 && this.#lost === 0) this.#lost = status;
    return this.lost();
  }

  get reserving(): boolean {
    return this.#reserving;
  }

  /** Less than half a portion is free, and it cannot grow. */
  get low(): boolean {
    return !this.#canGrow && this.#end - this.#used < this.portionBytes / 2 / CHUNK;
  }

  get #limit(): number {
    return Math.floor(Math.min(this.#limitBytes + this.#freed * CHUNK, this.#o.place.sizeBytes) / CHUNK);
  }

  get #end(): number {
    return this.#full ? this.#reserved : this.#limit;
  }

  get #canGrow(): boolean {
    return this.#o.place.kind === 'file' && !this.#full && this.#reserved < this.#limit;
  }

  /** A portion, smaller where the limit is small: half of it must still be a warning. */
  get portionBytes(): number {
    return Math.max(CHUNK, Math.min(this.#o.portionBytes, Math.floor(this.#limitBytes / 4 / CHUNK) * CHUNK));
  }

  /** Gives out `count` chunks in a row and returns the first, or -1 when there is no room for them. */
  allocate(count: number): number {
    if (!this.keep(count)) return -1;
    const first = this.#next;
    this.#next += count;
    return first;
  }

  /** Counts `count` chunks as in use. False, and nothing happens, when there is no room for them. */
  keep(count: number): boolean {
    if (this.#used + count > this.#end) return false;
    this.#used += count;
    if (!this.#reserving && this.#canGrow && this.#reserved - this.#used < this.portionBytes / 2 / CHUNK)
      void this.reserve();
    return true;
  }

  /** The place has got chunks back: as many more may follow, where it is not of a fixed size. */
  freed(count: number): void {
    this.#freed += count;
    this.#full = false;
  }

  /** More may be kept here. The place may have got room, too. */
  raiseLimit(limitBytes: number): void {
    this.#limitBytes = Math.min(limitBytes, this.#o.place.sizeBytes);
    this.#full = false;
  }

  /** Reserves the next portion, or what still fits of it, but at most half of what is free there: an origin may lie
   *  beside it, and need room of its own. 0, or an errno when nothing more fits. */
  async reserve(): Promise<number> {
    if (this.#o.place.kind !== 'file') return 0;
    this.#reserving = true;
    const from = Math.max(this.#reserved, this.#used);
    const half = Math.max(SMALLEST_PORTION / CHUNK, Math.floor(freeBytes(this.path) / 2 / CHUNK));
    let count = Math.min(this.portionBytes / CHUNK, this.#limit - from, half);
    let result = 0;
    for (; count > 0; count = Math.floor(count / 4)) {
      const length = count * CHUNK;
      result = await completed((c) => this.#reactor.allocate(this.fd, ALLOCATE_RESERVE, from * CHUNK, length, c));
      if (result !== -ERRNO.ENOSPC || length < SMALLEST_PORTION) break;
    }
    this.#reserving = false;
    if (result === -ERRNO.EOPNOTSUPP) return 0;
    if (result < 0) {
      this.#full = true;
      this.onFull();
      return -result;
    }
    this.#reserved = Math.max(this.#reserved, from + count);
    if (!this.#canGrow) this.onFull();
    return 0;
  }

  /** Takes its name away, if it was made for the storage: what is stored stays until it is closed. */
  unlink(): void {
    const { owned } = this.#o.place;
    if (owned !== null) fs.rmSync(owned, { force: true });
  }

  /** With `keep`, what has a name stays. */
  async close(keep = false): Promise<void> {
    await this.slabs?.close(this.#reactor);
    await releaseStoragePlace(this.#reactor, this.#o.place, keep);
  }
}
