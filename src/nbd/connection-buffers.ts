/** The buffers of connections: large ones for the first, small ones once an eighth of the arena is lent to connections, so that
 *  a quarter of it is enough for many. */

import { NO_MEMORY } from '../io/arena.ts';
import type { Arena } from '../io/arena.ts';
import {
  CONNECTION_BYTES,
  COPY_LIMIT,
  largeBuffersBytes,
  SLOTS_BYTES,
  SMALL_CONNECTION_BYTES,
  SMALL_COPY_LIMIT,
} from './limits.ts';

/** Room to receive in, and behind it the header slots of replies. */
export interface ConnectionBuffer {
  readonly at: number;
  readonly bytes: number;
  readonly receiveBytes: number;
  /** Payloads up to this size are copied out of the buffer; of larger ones, the part that is not there yet is received where
   *  it will be used. */
  readonly copyLimit: number;
}

export class ConnectionBuffers {
  readonly #arena: Arena;
  #lentBytes = 0;

  constructor(arena: Arena) {
    this.#arena = arena;
  }

  /** Null when the arena has no room for one more. */
  lend(): ConnectionBuffer | null {
    const mayBeLarge = this.#lentBytes + CONNECTION_BYTES <= largeBuffersBytes(this.#arena);
    const large = mayBeLarge ? this.#take(CONNECTION_BYTES, COPY_LIMIT) : null;
    return large ?? this.#take(SMALL_CONNECTION_BYTES, SMALL_COPY_LIMIT);
  }

  #take(bytes: number, copyLimit: number): ConnectionBuffer | null {
    const at = this.#arena.allocate(bytes);
    if (at === NO_MEMORY) return null;
    this.#lentBytes += bytes;
    return { at, bytes, receiveBytes: bytes - SLOTS_BYTES, copyLimit };
  }

  giveBack(buffer: ConnectionBuffer): void {
    this.#lentBytes -= buffer.bytes;
    this.#arena.release(buffer.at);
  }
}
