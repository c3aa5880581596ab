/** A block device as a program reads and writes it: offsets, buffers and promises. Slow paths.
 *  Cuts long transfers into pieces that the arena can hold. */

import { NO_MEMORY } from '../io/arena.ts';
import { completed } from '../io/reactor.ts';
import { BlksnapError, errnoError } from '../util/errors.ts';
import { MIB } from '../util/units.ts';
import { DISCARD, FLUSH, READ, WRITE, runBio } from './bio.ts';
import type { Op } from './bio.ts';
import type { BlockDevice } from './device.ts';
import type { FilterHost } from './filter.ts';

const PIECE = MIB;
const MEMORY_RETRY_MS = 1;

export class Bytes {
  readonly #device: BlockDevice;
  readonly #host: FilterHost;

  constructor(device: BlockDevice, host: FilterHost) {
    this.#device = device;
    this.#host = host;
  }

  /** Bytes. */
  get size(): number {
    return this.#device.size;
  }

  /** Errors: EINVAL outside of the device; EIO and the like. */
  async read(offset: number, length: number): Promise<Buffer> {
    this.#check('read', offset, length);
    const block = this.#device.logicalBlockSize;
    const first = offset - (offset % block);
    const end = Math.ceil((offset + length) / block) * block;
    const data = Buffer.alloc(end - first);
    for (let done = 0; done < data.length; done += PIECE) {
      const size = Math.min(PIECE, data.length - done);
      await this.#transfer(READ, first + done, data.subarray(done, done + size));
    }
    return data.subarray(offset - first, offset - first + length);
  }

  /** Offset and length are multiples of the logical block. Errors: EINVAL; ENOSPC, EIO and the like. */
  async write(offset: number, data: Uint8Array): Promise<void> {
    this.#check('write', offset, data.length);
    const { logicalBlockSize } = this.#device;
    if (offset % logicalBlockSize !== 0 || data.length % logicalBlockSize !== 0) {
      throw new BlksnapError(
        'EINVAL',
        `Cannot write ${data.length} bytes at ${offset} of "${this.#device.name}": want multiples of ${logicalBlockSize}`,
      );
    }
    for (let done = 0; done < data.length; done += PIECE) {
      await this.#transfer(WRITE, offset + done, data.subarray(done, done + PIECE));
    }
  }

  async discard(offset: number, length: number): Promise<void> {
    this.#check('discard', offset, length);
    await this.#run(DISCARD, { offset, length, at: 0 });
  }

  /** What was written before is on stable storage afterwards. */
  async flush(): Promise<void> {
    await this.#run(FLUSH, { offset: 0, length: 0, at: 0 });
  }

  /** Closes the device. Safe to call twice. */
  async close(): Promise<void> {
    await this.#device.close();
  }

  #check(verb: string, offset: number, length: number): void {
    const sound = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0;
    if (sound && offset + length <= this.size) return;
    throw new BlksnapError(
      'EINVAL',
      `Cannot ${verb} ${length} bytes at ${offset} of "${this.#device.name}": its size is ${this.size}`,
    );
  }

  async #transfer(op: typeof READ | typeof WRITE, offset: number, data: Uint8Array): Promise<void> {
    const { reactor } = this.#host;
    const { arena } = reactor;
    let at = arena.allocate(data.length);
    while (at === NO_MEMORY) {
      await completed((c) => void reactor.timer(MEMORY_RETRY_MS, c));
      at = arena.allocate(data.length);
    }
    try {
      if (op === WRITE) arena.bytes.set(data, at);
      await this.#run(op, { offset, length: data.length, at });
      if (op === READ) data.set(arena.bytes.subarray(at, at + data.length));
    } finally {
      arena.release(at);
    }
  }

  async #run(op: Op, io: { readonly offset: number; readonly length: number; readonly at: number }): Promise<void> {
    const status = await runBio(this.#host.pool, this.#device, { op, ...io });
    if (status !== 0)
      throw errnoError(status, `Cannot transfer ${io.length} bytes at ${io.offset} of "${this.#device.name}"`);
  }
}
