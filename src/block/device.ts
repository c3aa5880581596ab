/** The contract of block devices: files, kernel devices, memory, disks, snapshot images. */

import type { BioSink } from './bio.ts';

/** What a device can do beyond reading and writing. A bio whose capability is missing ends with
 *  EOPNOTSUPP: it is never passed over in silence. */
export interface Capabilities {
  readonly flush: boolean;
  readonly fua: boolean;
  readonly discard: boolean;
  readonly writeZeroes: boolean;
  /** writeZeroes is faster than writing zeros. */
  readonly fastZero: boolean;
  readonly rotational: boolean;
}

/** A run of bytes in one state of allocation. `hole`: reads as zeros and takes no space.
 *  `zero`: reads as zeros. A hole is always zero too. */
export interface Extent {
  readonly length: number;
  readonly hole: boolean;
  readonly zero: boolean;
}

/** Tells holes from data at once, without I/O: what is a hole reads as zeros at the moment of the answer. */
export interface HoleFinder {
  /** Where data begins, from `offset` on; `end` when all before it is a hole. `offset` for "unknown". */
  dataFrom(offset: number, end: number): number;
  /** Where the data that begins at `offset` ends; `end` for "unknown". */
  dataUntil(offset: number, end: number): number;
}

export interface BlockDevice extends BioSink {
  readonly name: string;
  /** Bytes, a multiple of logicalBlockSize. */
  readonly size: number;
  /** Smallest unit that can be addressed, bytes. */
  readonly logicalBlockSize: number;
  /** Unit that is written without a read before it, bytes. */
  readonly physicalBlockSize: number;
  readonly readOnly: boolean;
  readonly capabilities: Capabilities;
  /** Requests to another device of this thread come first just now: much data of this one had better move in small parts.
   *  Absent where that is never so. */
  readonly givesWay?: boolean | undefined;
  /** Absent where holes cannot be told without I/O. */
  readonly holes?: HoleFinder | undefined;
  /** Called when a sync has failed: what was written before it may be lost, now or when the machine stops. Set by whoever
   *  keeps a history of the device; absent where no sync can fail. */
  onLost?: () => void;
  /** The states of [offset, offset + length), in order; covers at least the first byte, and may stop
   *  early. "Unknown" is data: neither hole nor zero. Slow path. Rejects with EIO and the like. */
  extents(offset: number, length: number): Promise<Extent[]>;
  /** Takes over the size that the file or device has now, and returns it. No bio may be under way. Absent where
   *  the size cannot change. Errors: EINVAL for a size that a disk cannot have; it is then as before. */
  refreshSize?(): number;
  /** Gives back what the device holds. No bio may be under way. Safe to call twice. */
  close(): Promise<void>;
}

/** Adds an extent to a list, joined with the one before where the state is the same. */
export function pushExtent(list: Extent[], length: number, hole: boolean, zero: boolean): void {
  const last = list.at(-1);
  if (last !== undefined && last.hole === hole && last.zero === zero) {
    list[list.length - 1] = { length: last.length + length, hole, zero };
  } else {
    list.push({ length, hole, zero });
  }
}
