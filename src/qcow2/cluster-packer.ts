/** Packs compressed clusters one behind the other into the file.
 *
 *  They are gathered in a buffer of many clusters, whose place in the file is decided when it is full, so that
 *  uncompressed clusters can go to the file in between. Two buffers: one fills while the other is written. */

import { assert } from '../util/assert.ts';
import { BlksnapError } from '../util/errors.ts';
import { borrow } from '../io/files.ts';
import type { Arena } from '../io/arena.ts';
import type { FileLog } from './file-log.ts';
import { compressedOffsetLimit } from './format.ts';
import type { GuestTables } from './guest-tables.ts';

const PACK_BYTES = 2 ** 20;
const PACKS = 2;
/** Refcounts are 16 bits wide: this many compressed clusters may touch one cluster of the file. */
const MAX_REFCOUNT = 65_535;

interface Pack {
  readonly at: number;
  used: number;
  /** Triples: guest cluster, position in the pack, length. */
  readonly entries: number[];
}

export class ClusterPacker {
  readonly #arena: Arena;
  readonly #log: FileLog;
  readonly #tables: GuestTables;
  readonly #clusterBits: number;
  readonly #packBytes: number;
  readonly #free: Pack[] = [];
  readonly #all: Pack[] = [];
  #filling: Pack | null = null;
  #waiting: Array<() => void> = [];
  /** By number of the cluster in the file, where it is not 1: how many compressed clusters touch it. */
  readonly refcounts = new Map<number, number>();

  constructor(arena: Arena, log: FileLog, tables: GuestTables, clusterBits: number) {
    this.#arena = arena;
    this.#log = log;
    this.#tables = tables;
    this.#clusterBits = clusterBits;
    this.#packBytes = Math.max(PACK_BYTES, 2 * 2 ** clusterBits);
  }

  async open(): Promise<void> {
    for (let pack = 0; pack < PACKS; pack++) {
      const made: Pack = { at: await borrow(this.#arena, this.#packBytes), used: 0, entries: [] };
      this.#all.push(made);
      this.#free.push(made);
    }
  }

  /** Waits until a cluster that did not shrink at all would fit. `add` must follow in the same turn. */
  async room(): Promise<void> {
    for (;;) {
      const pack = this.#filling;
      if (pack !== null && this.#hasRoom(pack)) return;
      if (pack !== null) this.#store(pack);
      this.#filling = this.#free.pop() ?? null;
      if (this.#filling === null) await new Promise<void>((resolve) => this.#waiting.push(resolve));
      this.#log.checkFailure();
    }
  }

  add(cluster: number, compressed: Uint8Array): void {
    const pack = this.#filling;
    assert(pack !== null && pack.used + compressed.length <= this.#packBytes, 'the pack has room');
    this.#arena.bytes.set(compressed, pack.at + pack.used);
    pack.entries.push(cluster, pack.used, compressed.length);
    pack.used += compressed.length;
  }

  /** Sends what is left on its way. */
  flush(): void {
    if (this.#filling !== null && this.#filling.used > 0) this.#store(this.#filling);
    this.#filling = null;
  }

  /** No write may be under way. */
  close(): void {
    for (const pack of this.#all.splice(0)) this.#arena.release(pack.at);
  }

  #hasRoom(pack: Pack): boolean {
    return pack.used + 2 ** this.#clusterBits <= this.#packBytes && pack.entries.length / 3 < MAX_REFCOUNT;
  }

  #store(pack: Pack): void {
    const start = this.#log.end;
    this.#filling = null;
    // A failure is kept by the log and comes out at the next write, or at the end.
    void this.#log.append(pack.at, pack.used).then(
      () => this.#giveBack(pack),
      () => this.#giveBack(pack),
    );
    for (let i = 0; i < pack.entries.length; i += 3) {
      const [cluster, position, length] = pack.entries.slice(i, i + 3) as [number, number, number];
      this.#tables.setCompressed(cluster, start + position, length);
      this.#countReferences(start + position, length);
    }
    const limit = compressedOffsetLimit(this.#clusterBits);
    if (start + pack.used > limit) {
      throw new BlksnapError(
        'EFBIG',
        `Cannot write "${this.#log.path}": compressed clusters must lie below ${limit}; use smaller clusters`,
      );
    }
  }

  #countReferences(host: number, length: number): void {
    const clusterSize = 2 ** this.#clusterBits;
    const last = host + length - 1;
    for (let n = Math.floor(host / clusterSize); n <= Math.floor(last / clusterSize); n++) {
      this.refcounts.set(n, (this.refcounts.get(n) ?? 0) + 1);
    }
  }

  #giveBack(pack: Pack): void {
    pack.used = 0;
    pack.entries.length = 0;
    this.#free.push(pack);
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }
}
