/** A block device in memory. Bios end inside `submit`, in the order in which they came: a bio that is
 *  submitted while another ends waits for that one's owner to return, so chains of bios do not recurse. */

import type { Arena } from '../io/arena.ts';
import { assert, unreachable } from '../util/assert.ts';
import { isZero } from '../util/zeroes.ts';
import { BioQueue, DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, rangeError } from './bio.ts';
import type { Bio } from './bio.ts';
import { pushExtent } from './device.ts';
import type { BlockDevice, Capabilities, Extent } from './device.ts';

const SECTOR = 512;
/** Granularity of `extents`. */
const EXTENT_BLOCK = 4096;

export class MemoryDevice implements BlockDevice {
  readonly name: string;
  readonly logicalBlockSize = SECTOR;
  readonly physicalBlockSize = SECTOR;
  readonly readOnly: boolean;
  readonly capabilities: Capabilities;
  /** The content. */
  readonly bytes: Uint8Array;
  readonly #arena: Arena;
  readonly #queue = new BioQueue();
  #ending = false;

  constructor(name: string, size: number, arena: Arena, options: { readonly readOnly?: boolean } = {}) {
    assert(size > 0 && size % SECTOR === 0, 'a memory device has whole sectors');
    this.name = name;
    this.bytes = new Uint8Array(size);
    this.#arena = arena;
    this.readOnly = options.readOnly ?? false;
    const writable = !this.readOnly;
    this.capabilities = {
      flush: true,
      fua: true,
      discard: writable,
      writeZeroes: writable,
      fastZero: writable,
      rotational: false,
    };
  }

  get size(): number {
    return this.bytes.length;
  }

  submit(bio: Bio): void {
    this.#queue.push(bio);
    if (this.#ending) return;
    this.#ending = true;
    for (let next = this.#queue.shift(); next !== null; next = this.#queue.shift()) next.end(this.#run(next));
    this.#ending = false;
  }

  #run(bio: Bio): number {
    const refused = rangeError(bio, this.size, this.readOnly);
    if (refused !== 0) return refused;
    const { op, offset, length, at } = bio;
    switch (op) {
      case READ:
        this.#arena.bytes.set(this.bytes.subarray(offset, offset + length), at);
        return 0;
      case WRITE:
        this.bytes.set(this.#arena.bytes.subarray(at, at + length), offset);
        return 0;
      case FLUSH:
        return 0;
      case DISCARD:
      case WRITE_ZEROES:
        this.bytes.fill(0, offset, offset + length);
        return 0;
      default:
        return unreachable(op);
    }
  }

  /** Blocks of zeros are `zero`, never a hole: their memory stays. */
  async extents(offset: number, length: number): Promise<Extent[]> {
    const list: Extent[] = [];
    const end = offset + length;
    for (let at = offset; at < end;) {
      const next = Math.min(end, (Math.floor(at / EXTENT_BLOCK) + 1) * EXTENT_BLOCK);
      pushExtent(list, next - at, false, isZero(this.bytes.subarray(at, next)));
      at = next;
    }
    return list;
  }

  async close(): Promise<void> {}
}
