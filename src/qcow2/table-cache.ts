/** A bounded cache of the L1 and L2 tables of a whole backing chain, in slices of up to 4 KiB.
 *
 *  Slices rather than tables: a random read costs 4 KiB of metadata, not a cluster, and an image that claims
 *  a large L1 table costs no memory. Hot path: `find`. A slice that is missing is read by `load`. The slice
 *  to give up is chosen by the clock algorithm: the hand passes over what was used since it last came by. */

import { ERRNO } from '../util/errors.ts';
import { borrow, readWhole } from '../io/files.ts';
import type { OpenFile } from '../io/files.ts';
import type { Reactor } from '../io/reactor.ts';

const SLICE_BYTES = 4096;
const LANES = 8;

export interface Slice {
  readonly view: DataView;
  readonly owner: TableFile;
  readonly position: number;
  used: boolean;
}

/** What all images of a chain share: the bound on slices, and the lanes of arena memory they are read through. */
export class TableCache {
  readonly reactor: Reactor;
  readonly #limit: number;
  readonly #slices: Slice[] = [];
  #hand = 0;
  #lanesAt = -1;
  readonly #freeLanes: number[] = [];
  readonly #waiting: Array<() => void> = [];

  constructor(reactor: Reactor, limitBytes: number) {
    this.reactor = reactor;
    this.#limit = Math.max(1, Math.floor(limitBytes / SLICE_BYTES));
  }

  /** Borrows the lanes. */
  async open(): Promise<void> {
    this.#lanesAt = await borrow(this.reactor.arena, LANES * SLICE_BYTES);
    for (let lane = 0; lane < LANES; lane++) this.#freeLanes.push(this.#lanesAt + lane * SLICE_BYTES);
  }

  async takeLane(): Promise<number> {
    while (this.#freeLanes.length === 0) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    return this.#freeLanes.pop()!;
  }

  giveLane(at: number): void {
    this.#freeLanes.push(at);
    this.#waiting.shift()?.();
  }

  add(slice: Slice): void {
    if (this.#slices.length < this.#limit) {
      this.#slices.push(slice);
      return;
    }
    for (;;) {
      const old = this.#slices[this.#hand]!;
      if (!old.used) {
        old.owner.forget(old.position);
        this.#slices[this.#hand] = slice;
        return;
      }
      old.used = false;
      this.#hand = (this.#hand + 1) % this.#limit;
    }
  }

  close(): void {
    if (this.#lanesAt >= 0) this.reactor.arena.release(this.#lanesAt);
    this.#lanesAt = -1;
  }
}

/** One image's tables, by their position in its file. */
export class TableFile {
  readonly #cache: TableCache;
  readonly #file: OpenFile;
  readonly #sliceBytes: number;
  readonly #slices = new Map<number, Slice>();
  readonly #loading = new Map<number, Promise<number>>();
  #last: Slice | null = null;

  /** Tables are aligned to clusters, so slices no larger than a cluster never cross one's end. */
  constructor(cache: TableCache, file: OpenFile, clusterBytes: number) {
    this.#cache = cache;
    this.#file = file;
    this.#sliceBytes = Math.min(SLICE_BYTES, clusterBytes);
  }

  /** Where the slice that holds the byte at `offset` starts. */
  sliceStart(offset: number): number {
    return offset - (offset % this.#sliceBytes);
  }

  /** The slice that starts at `position`, or null when it must be loaded first. */
  find(position: number): Slice | null {
    if (this.#last !== null && this.#last.position === position) return this.#last;
    const slice = this.#slices.get(position);
    if (slice === undefined) return null;
    slice.used = true;
    this.#last = slice;
    return slice;
  }

  /** Reads a slice; resolves with 0 or an errno. Loads of the same slice share one read. */
  load(position: number): Promise<number> {
    let loading = this.#loading.get(position);
    if (loading === undefined) {
      loading = this.#read(position).finally(() => this.#loading.delete(position));
      this.#loading.set(position, loading);
    }
    return loading;
  }

  forget(position: number): void {
    this.#slices.delete(position);
    if (this.#last?.position === position) this.#last = null;
  }

  async #read(position: number): Promise<number> {
    const { reactor } = this.#cache;
    const lane = await this.#cache.takeLane();
    try {
      const bytes = new Uint8Array(this.#sliceBytes);
      const count = await readWhole(reactor, this.#file, lane, this.#sliceBytes, position);
      // Past the end of the file there are zeroes: the rest of an L1 table's last cluster.
      bytes.set(reactor.arena.bytes.subarray(lane, lane + count));
      const slice: Slice = { view: new DataView(bytes.buffer), owner: this, position, used: true };
      this.#slices.set(position, slice);
      this.#cache.add(slice);
      return 0;
    } catch {
      return ERRNO.EIO;
    } finally {
      this.#cache.giveLane(lane);
    }
  }
}
