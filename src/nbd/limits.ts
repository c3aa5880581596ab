/** How much memory clients may make the server use, from the size of its arena. */

import type { Arena } from '../io/arena.ts';
import type { BlockDevice } from '../block/device.ts';
import { alignDown, KIB, MIB } from '../util/units.ts';
import { PAYLOAD_LIMIT } from './protocol.ts';

/** Longest payload that is copied out of the receive buffer, large or small: a buffer always has room for one such request. */
export const COPY_LIMIT = 64 * KIB;
export const SMALL_COPY_LIMIT = 16 * KIB;
/** Data of larger requests is held, read and written in pieces, so that no request needs a large run of free memory. */
export const PIECE_BYTES = MIB;
export const SMALLEST_PIECE_BYTES = 64 * KIB;
/** What one send of a device that gives way takes at most: no other client waits for more than it. */
export const SMALL_SEND_BYTES = 32 * KIB;
/** Requests of one connection that are under way at once. */
export const REQUEST_LIMIT = 256;
/** Arena bytes per request for its reply's header. */
export const HEADER_SLOT = 64;
export const SLOTS_BYTES = REQUEST_LIMIT * HEADER_SLOT;
/** A connection's buffer for what is received, with its header slots: holds a queue of 32 writes of 4 KiB and more. */
export const CONNECTION_BYTES = 256 * KIB;
/** And where there are many: also what may come with a handshake (two messages of it) fits. */
export const SMALL_CONNECTION_BYTES = 64 * KIB;
export const DEFAULT_CONNECTIONS = 256;

/** Data bytes that one connection may have under way. One request is always let through. */
export function inFlightLimit(arena: Arena): number {
  return alignDown(arena.size / 4, SMALLEST_PIECE_BYTES);
}

/** The largest read or write that a server with this arena takes. */
export function payloadLimit(arena: Arena): number {
  return Math.min(PAYLOAD_LIMIT, inFlightLimit(arena));
}

/** Buffers of connections are large as long as all of them together are no more than this. */
export function largeBuffersBytes(arena: Arena): number {
  return arena.size / 8;
}

/** Connections' own buffers take at most a quarter of the arena. */
export function connectionLimit(arena: Arena, most: number): number {
  const large = Math.floor(largeBuffersBytes(arena) / CONNECTION_BYTES);
  const small = Math.floor((arena.size / 4 - large * CONNECTION_BYTES) / SMALL_CONNECTION_BYTES);
  return Math.max(1, Math.min(most, large + small));
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
