/** The iovecs (struct iovec, 16 bytes) of gather writes and scatter reads that are prepared and not yet submitted; the kernel copies them
 *  when it takes the submission. Hot path: add. */

import { ERRNO, errnoError } from '../../util/errors.ts';
import { mapAnonymous, unmap } from '../sys.ts';
import type { Mapping } from '../sys.ts';

const SEGMENTS = 16384;
const IOVEC_BYTES = 16;

export class GatherList {
  readonly #mapping: Mapping;
  readonly #view: DataView;
  #count = 0;

  /** Errors: ENOMEM. */
  constructor() {
    const mapping = mapAnonymous(SEGMENTS * IOVEC_BYTES);
    if (typeof mapping === 'number') throw errnoError(ERRNO.ENOMEM, 'Cannot map memory for lists of buffers');
    this.#mapping = mapping;
    this.#view = new DataView(mapping.memory);
  }

  hasRoom(count: number): boolean {
    return this.#count + count <= SEGMENTS;
  }

  /** All that was added has been submitted. */
  clear(): void {
    this.#count = 0;
  }

  /** Adds pairs of (place, length) of memory that begins at `base`; their iovecs' address. */
  add(segments: Float64Array, count: number, base: number): number {
    const first = this.#count * IOVEC_BYTES;
    const view = this.#view;
    for (let i = 0; i < count; i++) {
      const iov = first + i * IOVEC_BYTES;
      const address = base + segments[i * 2]!;
      view.setUint32(iov, address >>> 0, true);
      view.setUint32(iov + 4, Math.floor(address / 2 ** 32), true);
      view.setUint32(iov + 8, segments[i * 2 + 1]!, true);
      view.setUint32(iov + 12, 0, true);
    }
    this.#count += count;
    return this.#mapping.address + first;
  }

  close(): void {
    unmap(this.#mapping.address, SEGMENTS * IOVEC_BYTES);
  }
}
