/** How much memory clients may make the server use, from the size of its arena. */

import type { Arena } from '../io/arena.ts';
import type { BlockDevice } from '../block/device.ts';
import { alignDown, KIB, MIB } from '../util/units.ts';
import { PAYLOAD_LIMIT } from './protocol.ts';

/** A connection's receive buffer: holds a queue of 32 writes of 4 KiB and more. */
export const RECEIVE_BYTES = 240 * KIB;
/** Payloads up to this size are copied out of the receive buffer; of larger ones, the part that is not there yet is
 *  received where it will be used. */
export const COPY_LIMIT = 64 * KIB;
/** Data of larger requests is held, read and written in pieces, so that no request needs a large run of free memory. */
export const PIECE_BYTES = MIB;
export const SMALLEST_PIECE_BYTES = 64 * KIB;
/** Requests of one connection that are under way at once. */
export const REQUEST_LIMIT = 256;
/** Arena bytes per request for its reply's header. */
export const HEADER_SLOT = 64;
export const CONNECTION_BYTES = RECEIVE_BYTES + REQUEST_LIMIT * HEADER_SLOT;
const MAX_CONNECTIONS = 64;

/** Data bytes that one connection may have under way. One request is always let through. */
export function inFlightLimit(arena: Arena): number {
  return alignDown(arena.size / 4, SMALLEST_PIECE_BYTES);
}

/** The largest read or write that a server with this arena takes. */
export function payloadLimit(arena: Arena): number {
  return Math.min(PAYLOAD_LIMIT, inFlightLimit(arena));
}

/** Connections' own buffers take at most a quarter of the arena. */
export function connectionLimit(arena: Arena): number {
  return Math.max(1, Math.min(MAX_CONNECTIONS, Math.floor(arena.size / 4 / CONNECTION_BYTES)));
}

export interface BlockSizes {
  readonly minimum: number;
  readonly preferred: number;
  readonly maximum: number;
}

/** The size constraints of an export. */
export function blockSizes(device: BlockDevice, arena: Arena): BlockSizes {
  const minimum = device.logicalBlockSize;
  const preferred = Math.max(4 * KIB, device.physicalBlockSize, minimum);
  return { minimum, preferred, maximum: alignDown(Math.max(payloadLimit(arena), preferred), minimum) };
}
