/** A range of a device as a device of its own: a partition, say. Its bios go through the whole device, and so
 *  through its gate and filters. Closing it leaves the whole device as it is.
 *
 *  Hot path. Each bio is sent on as one of its own from the pool: the whole may be a disk, whose gate marks bios. */

import { assert } from '../util/assert.ts';
import { FLUSH, rangeError } from './bio.ts';
import type { Bio, BioOwner, BioPool } from './bio.ts';
import type { BlockDevice, Capabilities, Extent } from './device.ts';

export interface DeviceRange {
  /** Bytes of the whole device, multiples of its logical block size. */
  readonly offset: number;
  readonly length: number;
}

export class RangeDevice implements BlockDevice, BioOwner {
  readonly name: string;
  readonly range: DeviceRange;
  readonly readOnly: boolean;
  readonly #whole: BlockDevice;
  readonly #pool: BioPool;

  constructor(
    name: string,
    whole: BlockDevice,
    options: DeviceRange & { readonly pool: BioPool; readonly readOnly?: boolean },
  ) {
    const { offset, length } = options;
    const block = whole.logicalBlockSize;
    assert(offset >= 0 && length > 0 && offset + length <= whole.size, 'a range lies in its device');
    assert(offset % block === 0 && length % block === 0, 'a range has whole blocks');
    this.name = name;
    this.range = { offset, length };
    this.readOnly = whole.readOnly || (options.readOnly ?? false);
    this.#whole = whole;
    this.#pool = options.pool;
  }

  get size(): number {
    return this.range.length;
  }
  get logicalBlockSize(): number {
    return this.#whole.logicalBlockSize;
  }
  get physicalBlockSize(): number {
    return this.#whole.physicalBlockSize;
  }
  get capabilities(): Capabilities {
    const { capabilities } = this.#whole;
    return this.readOnly ? { ...capabilities, discard: false, writeZeroes: false, fastZero: false } : capabilities;
  }

  get givesWay(): boolean | undefined {
    return this.#whole.givesWay;
  }

  submit(bio: Bio): void {
    const refused = rangeError(bio, this.size, this.readOnly);
    if (refused !== 0) {
      bio.end(refused);
      return;
    }
    const offset = bio.op === FLUSH ? 0 : bio.offset + this.range.offset;
    const inner = this.#pool.get(bio.op, offset, bio.length, bio.at, bio.flags, this);
    inner.tag = bio;
    this.#whole.submit(inner);
  }

  bioEnded(inner: Bio): void {
    const bio = inner.tag as Bio;
    const { status } = inner;
    this.#pool.put(inner);
    bio.end(status);
  }

  extents(offset: number, length: number): Promise<Extent[]> {
    return this.#whole.extents(this.range.offset + offset, length);
  }

  async close(): Promise<void> {}
}
