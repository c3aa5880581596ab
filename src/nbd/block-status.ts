/** Answers to BLOCK_STATUS: one chunk per metadata context. Slow path. */

import { BlksnapError } from '../util/errors.ts';
import { KIB } from '../util/units.ts';
import type { SelectedContext } from './contexts.ts';
import type { StatusExtent } from './export.ts';
import {
  EXTENDED_HEADER_SIZE,
  REPLY_BLOCK_STATUS,
  REPLY_BLOCK_STATUS_EXT,
  REPLY_FLAG_DONE,
  setU64,
} from './protocol.ts';
import { encodeChunkHeader } from './request.ts';
import type { Request } from './request.ts';

/** Bytes of one reply. A client asks on from where the reply ended. */
const STATUS_REPLY_LIMIT = 64 * KIB;

/** The contexts' chunks in one piece, the last marked as the end of the reply.
 *  Errors: what a context rejects with; EIO when it answers nonsense. */
export async function blockStatusReply(
  request: Request,
  contexts: readonly SelectedContext[],
  extended: boolean,
  onlyOne: boolean,
): Promise<Uint8Array> {
  const { offset, length } = request;
  const descriptor = extended ? 16 : 8;
  const chunkLimit = Math.floor(STATUS_REPLY_LIMIT / contexts.length) - EXTENDED_HEADER_SIZE - 8;
  const extentLimit = onlyOne ? 1 : Math.floor(chunkLimit / descriptor);
  const bytes = new Uint8Array(STATUS_REPLY_LIMIT);
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const [index, { id, context }] of contexts.entries()) {
    const extents = clip(await context.blockStatus(offset, length), length, extentLimit, context.name);
    const flags = index === contexts.length - 1 ? REPLY_FLAG_DONE : 0;
    const type = extended ? REPLY_BLOCK_STATUS_EXT : REPLY_BLOCK_STATUS;
    const payload = (extended ? 8 : 4) + extents.length * descriptor;
    at = encodeChunkHeader(view, at, extended, request, flags, type, payload);
    view.setUint32(at, id);
    if (extended) view.setUint32(at + 4, extents.length);
    at += extended ? 8 : 4;
    for (const extent of extents) {
      if (extended) {
        setU64(view, at, extent.length);
        setU64(view, at + 8, extent.flags >>> 0);
      } else {
        view.setUint32(at, extent.length);
        view.setUint32(at + 4, extent.flags);
      }
      at += descriptor;
    }
  }
  return bytes.subarray(0, at);
}

/** The extents within the request, neighbours of equal status joined, at most `limit` of them. */
function clip(extents: readonly StatusExtent[], length: number, limit: number, context: string): StatusExtent[] {
  const clipped: StatusExtent[] = [];
  let left = length;
  for (const extent of extents) {
    if (left === 0) break;
    if (!(extent.length > 0))
      throw new BlksnapError('EIO', `Context ${context} reported an extent of ${extent.length} bytes`);
    const part = Math.min(extent.length, left);
    const last = clipped.at(-1);
    if (last?.flags === extent.flags) clipped[clipped.length - 1] = { length: last.length + part, flags: last.flags };
    else if (clipped.length === limit) break;
    else clipped.push({ length: part, flags: extent.flags });
    left -= part;
  }
  if (clipped.length === 0) throw new BlksnapError('EIO', `Context ${context} reported nothing`);
  return clipped;
}

/** The contexts that an extended request's payload names; null for unknown or repeated ones.
 *  The payload: 64 bits of effect length, then the ids. */
export function contextsOfPayload(
  view: DataView,
  at: number,
  payload: number,
  contexts: readonly SelectedContext[],
): SelectedContext[] | null {
  const chosen: SelectedContext[] = [];
  for (let i = 8; i < payload; i += 4) {
    const id = view.getUint32(at + i);
    const selected = contexts.find((each) => each.id === id);
    if (selected === undefined || chosen.includes(selected)) return null;
    chosen.push(selected);
  }
  return chosen.length === 0 ? null : chosen;
}
