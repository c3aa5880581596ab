/** Reads compressed clusters for a whole backing chain: one piece of arena memory to read into, used in
 *  turn, and the last few clusters kept decompressed, since readers come back for the rest of a cluster. */

import { alignUp } from '../util/units.ts';
import { borrow, readWhole } from '../io/files.ts';
import type { OpenFile } from '../io/files.ts';
import type { Reactor } from '../io/reactor.ts';
import type { ClusterCodec } from './compression.ts';

const KEPT_BYTES = 2 ** 20;
const MAX_KEPT = 16;

/** Where a compressed cluster lies. */
export interface CompressedPlace {
  readonly file: OpenFile;
  readonly codec: ClusterCodec;
  readonly clusterSize: number;
  readonly host: number;
  readonly hostLength: number;
}

interface KeptCluster {
  readonly fd: number;
  readonly host: number;
  readonly bytes: Uint8Array;
}

export class CompressedReader {
  readonly #reactor: Reactor;
  readonly #scratchBytes: number;
  readonly #kept: KeptCluster[] = [];
  readonly #maxKept: number;
  #oldest = 0;
  #scratch = -1;
  #turn: Promise<unknown> = Promise.resolve();

  /** `largestCluster`: bytes of the largest cluster in the chain. */
  constructor(reactor: Reactor, largestCluster: number) {
    this.#reactor = reactor;
    // An entry cannot name more than two clusters' worth of sectors.
    this.#scratchBytes = alignUp(2 * largestCluster, 4096);
    this.#maxKept = Math.max(1, Math.min(MAX_KEPT, KEPT_BYTES / largestCluster));
  }

  async open(): Promise<void> {
    this.#scratch = await borrow(this.#reactor.arena, this.#scratchBytes);
  }

  /** The cluster's data if it was read lately, else null. */
  kept(file: OpenFile, host: number): Uint8Array | null {
    for (const cluster of this.#kept) if (cluster.host === host && cluster.fd === file.fd) return cluster.bytes;
    return null;
  }

  /** The cluster's data; null when it cannot be read or is damaged. */
  read(place: CompressedPlace): Promise<Uint8Array | null> {
    const reading = this.#turn.then(() => this.kept(place.file, place.host) ?? this.#read(place));
    this.#turn = reading;
    return reading;
  }

  close(): void {
    if (this.#scratch >= 0) this.#reactor.arena.release(this.#scratch);
    this.#scratch = -1;
  }

  async #read({ file, codec, clusterSize, host, hostLength }: CompressedPlace): Promise<Uint8Array | null> {
    try {
      // Short at the end of the file, where the last sector need not be whole.
      const count = await readWhole(this.#reactor, file, this.#scratch, hostLength, host);
      const bytes = new Uint8Array(clusterSize);
      if (!codec.decompress(this.#reactor.arena.bytes.subarray(this.#scratch, this.#scratch + count), bytes))
        return null;
      this.#kept[this.#oldest] = { fd: file.fd, host, bytes };
      this.#oldest = (this.#oldest + 1) % this.#maxKept;
      return bytes;
    } catch {
      return null;
    }
  }
}
