/** The iovecs (struct iovec, 16 bytes) of gather writes and scatter reads that are prepared and not yet submitted; the kernel copies them
 *  when it takes the submission. One more is for calls that are made at once. Hot path: add, single. */

import { ERRNO, errnoError } from '../../util/errors.ts';
import { mapAnonymous, unmap } from '../sys.ts';
import type { Mapping } from '../sys.ts';

const SEGMENTS = 16384;
const IOVEC_BYTES = 16;
/** Behind the others: the one for calls made at once. */
const SINGLE = SEGMENTS * IOVEC_BYTES;
const BYTES = SINGLE + IOVEC_BYTES;

export class GatherList {
  readonly #mapping: Mapping;
  readonly #view: DataView;
  readonly #base: number;
  readonly #submit: () => void;
  #count = 0;

  /** Of memory that begins at `base`. `submit` is called when the list is full. Errors: ENOMEM. */
  constructor(base: number, submit: () => void) {
    this.#base = base;
    this.#submit = submit;
    const mapping = mapAnonymous(BYTES);
    if (typeof mapping === 'number') throw errnoError(ERRNO.ENOMEM, 'Cannot map memory for lists of buffers');
    this.#mapping = mapping;
    this.#view = new DataView(mapping.memory);
  }

  /** All that was added has been submitted. */
  clear(): void {
    this.#count = 0;
  }

  /** Adds pairs of (place, length); their iovecs' address, good until the end of the turn, which submits. */
  add(segments: Float64Array, count: number): number {
    if (this.#count + count > SEGMENTS) {
      this.#submit();
      this.clear();
    }
    const first = this.#count * IOVEC_BYTES;
    for (let i = 0; i < count; i++) this.#set(first + i * IOVEC_BYTES, segments[i * 2]!, segments[i * 2 + 1]!);
    this.#count += count;
    return this.#mapping.address + first;
  }

  /** The address of one iovec, for a call that is made before the next of these. */
  single(place: number, length: number): number {
    this.#set(SINGLE, place, length);
    return this.#mapping.address + SINGLE;
  }

  #set(iov: number, place: number, length: number): void {
    const view = this.#view;
    const address = this.#base + place;
    view.setUint32(iov, address >>> 0, true);
    view.setUint32(iov + 4, Math.floor(address / 2 ** 32), true);
    view.setUint32(iov + 8, length, true);
    view.setUint32(iov + 12, 0, true);
  }

  close(): void {
    unmap(this.#mapping.address, BYTES);
  }
}
