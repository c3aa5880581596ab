/** The L2 tables of an image that is being written, in memory as they will be in the file.
 *
 *  One table per stretch of the disk that has anything in it. Every cluster is set at most once: a second
 *  time is the caller's mistake and is refused before anything is written. */

import { BlksnapError } from '../util/errors.ts';
import { encodeL2Compressed, encodeL2Data, encodeL2Zero, l2Coverage } from './format.ts';

/** In the upper half of an entry whose write is under way; no finished entry has it. */
const CLAIMED = 0x3f00_0000;

export class GuestTables {
  readonly #clusterBits: number;
  readonly #entries: number;
  readonly #tables = new Map<number, DataView>();

  constructor(clusterBits: number) {
    this.#clusterBits = clusterBits;
    this.#entries = l2Coverage(clusterBits, false) / 2 ** clusterBits;
  }

  /** Takes the clusters for a write that will set them later. Errors: EEXIST when one of them has been taken or set. */
  claim(first: number, count: number, name: string): void {
    this.requireUnset(first, count, name);
    for (let cluster = first; cluster < first + count; cluster++) {
      this.#table(cluster).setUint32((cluster % this.#entries) * 8, CLAIMED);
    }
  }

  /** Errors: EEXIST. */
  requireUnset(first: number, count: number, name: string): void {
    for (let cluster = first; cluster < first + count; cluster++) {
      const table = this.#tables.get(Math.floor(cluster / this.#entries));
      const position = (cluster % this.#entries) * 8;
      if (table === undefined || (table.getUint32(position) === 0 && table.getUint32(position + 4) === 0)) continue;
      throw new BlksnapError(
        'EEXIST',
        `Cannot write "${name}" at ${cluster * 2 ** this.#clusterBits}: that cluster was written before`,
      );
    }
  }

  setData(cluster: number, host: number): void {
    encodeL2Data(this.#table(cluster), (cluster % this.#entries) * 8, host);
  }

  setZero(cluster: number): void {
    encodeL2Zero(this.#table(cluster), (cluster % this.#entries) * 8);
  }

  setCompressed(cluster: number, host: number, length: number): void {
    encodeL2Compressed(this.#table(cluster), (cluster % this.#entries) * 8, this.#clusterBits, host, length);
  }

  /** The tables by their index in L1, in order. */
  inOrder(): Array<readonly [index: number, table: DataView]> {
    return [...this.#tables].sort(([a], [b]) => a - b);
  }

  #table(cluster: number): DataView {
    const index = Math.floor(cluster / this.#entries);
    let table = this.#tables.get(index);
    if (table === undefined) {
      table = new DataView(new ArrayBuffer(this.#entries * 8));
      this.#tables.set(index, table);
    }
    return table;
  }
}
