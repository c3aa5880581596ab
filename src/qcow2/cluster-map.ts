/** Where one image's clusters are: from an offset of the disk to the longest run of one kind from there.
 *
 *  Hot path: `find` allocates nothing and looks only at tables that are cached; a table that is not ends it
 *  with MISSING and the slice to load. Every entry is checked against the format and the file before use.
 *  Does no I/O of its own, and knows nothing of backing files. */

import {
  COMPRESSED,
  CORRUPT,
  DATA,
  decodeExtendedL2,
  decodeL1,
  decodeL2,
  L2Entry,
  l2Coverage,
  SUBCLUSTERS,
  UNALLOCATED,
  ZERO,
} from './format.ts';
import type { EntryState } from './format.ts';
import type { Qcow2Header } from './header.ts';
import type { TableFile } from './table-cache.ts';

/** A table slice must be loaded first: see `slice`. */
export const MISSING = 5;
export type RunKind = EntryState | typeof MISSING;

/** Entries that one `find` looks at: a bound on the time it takes, whatever the image says. */
const MAX_LOOKS = 65_536;

/** Entries that all images of a chain have looked at together. */
export interface LookCount {
  looks: number;
}

export class ClusterMap {
  readonly #header: Qcow2Header;
  readonly #tables: TableFile;
  readonly #count: LookCount;
  readonly #fileBytes: number;
  readonly #clusterSize: number;
  /** Bytes that have a state of their own: a cluster, or a subcluster. */
  readonly #unit: number;
  readonly #coverage: number;
  readonly #entryBytes: number;
  readonly #entry = new L2Entry();
  /** The state at one place, set by `#look`: up to where it holds, and where its data is. */
  #end = 0;
  #host = 0;

  /** Results of `find`. Bytes of the run. */
  length = 0;
  /** The run may go on: it was not followed to its end. */
  cutShort = false;
  /** DATA: where the run's first byte is in the file. COMPRESSED: where the cluster's compressed bytes are. */
  host = 0;
  /** COMPRESSED: how many those are at most. */
  hostLength = 0;
  /** MISSING: what to load. */
  slice = 0;
  /** CORRUPT: the offset of the disk that cannot be mapped. */
  damagedOffset = 0;

  constructor(header: Qcow2Header, tables: TableFile, file: { readonly fileBytes: number; readonly count: LookCount }) {
    const { fileBytes, count } = file;
    this.#header = header;
    this.#tables = tables;
    this.#count = count;
    this.#fileBytes = fileBytes;
    this.#clusterSize = 2 ** header.clusterBits;
    this.#unit = header.extendedL2 ? this.#clusterSize / SUBCLUSTERS : this.#clusterSize;
    this.#coverage = l2Coverage(header.clusterBits, header.extendedL2);
    this.#entryBytes = header.extendedL2 ? 16 : 8;
  }

  /** Finds the run at `offset`, at most `limit` bytes long. A compressed run ends with its cluster. */
  find(offset: number, limit: number): RunKind {
    const stop = offset + limit;
    const kind = this.#look(offset);
    if (kind === MISSING || kind === CORRUPT) return kind;
    const host = this.#host;
    let end = this.#end;
    let looks = 0;
    while (end < stop && kind !== COMPRESSED && ++looks < MAX_LOOKS) {
      if (this.#look(end) !== kind || (kind === DATA && this.#host !== host + (end - offset))) break;
      end = this.#end;
    }
    this.cutShort = looks === MAX_LOOKS;
    this.host = host;
    this.length = Math.min(end, stop) - offset;
    return kind;
  }

  /** The state of the byte at `offset`. */
  #look(offset: number): RunKind {
    const { l1Offset, clusterBits, version, extendedL2 } = this.#header;
    this.#count.looks++;
    const l1Index = Math.floor(offset / this.#coverage);
    const l1At = l1Offset + l1Index * 8;
    const l1 = this.#slice(l1At);
    if (l1 === null) return MISSING;
    const l2Offset = decodeL1(l1, l1At - this.#tables.sliceStart(l1At), clusterBits);
    if (l2Offset === 0) {
      this.#end = (l1Index + 1) * this.#coverage;
      return UNALLOCATED;
    }
    if (l2Offset < 0 || l2Offset + this.#clusterSize > this.#fileBytes) return this.#corrupt(offset);
    const l2At = l2Offset + Math.floor((offset % this.#coverage) / this.#clusterSize) * this.#entryBytes;
    const l2 = this.#slice(l2At);
    if (l2 === null) return MISSING;
    const position = l2At - this.#tables.sliceStart(l2At);
    if (extendedL2) decodeExtendedL2(l2, position, clusterBits, this.#entry);
    else decodeL2(l2, position, clusterBits, version, this.#entry);
    return this.#place(offset);
  }

  /** From the decoded entry to the state of the byte at `offset`. */
  #place(offset: number): RunKind {
    const entry = this.#entry;
    const inCluster = offset % this.#clusterSize;
    switch (entry.state) {
      case CORRUPT:
        return this.#corrupt(offset);
      case COMPRESSED:
        this.#end = offset - inCluster + this.#clusterSize;
        this.#host = entry.host;
        this.hostLength = entry.hostLength;
        return entry.host < this.#fileBytes ? COMPRESSED : this.#corrupt(offset);
      case UNALLOCATED:
      case ZERO:
        this.#end = offset - inCluster + this.#clusterSize;
        return entry.state;
      case DATA: {
        this.#end = offset - (offset % this.#unit) + this.#unit;
        if (this.#header.extendedL2) {
          const bit = (entry.allocated >>> Math.floor(inCluster / this.#unit)) & 1;
          const zero = (entry.zero >>> Math.floor(inCluster / this.#unit)) & 1;
          if (bit === 0) return zero === 1 ? ZERO : UNALLOCATED;
        }
        this.#host = entry.host + inCluster;
        // QEMU reads zeroes past the end of the file. For us that is a file that was cut short.
        const needed = Math.min(this.#end, this.#header.size) - offset;
        return this.#host + needed <= this.#fileBytes ? DATA : this.#corrupt(offset);
      }
    }
  }

  #corrupt(offset: number): typeof CORRUPT {
    this.damagedOffset = offset;
    return CORRUPT;
  }

  #slice(at: number): DataView | null {
    const position = this.#tables.sliceStart(at);
    const slice = this.#tables.find(position);
    if (slice !== null) return slice.view;
    this.slice = position;
    return null;
  }
}
