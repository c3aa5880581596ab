/** One request of a client, from its header to the end of its reply's send.
 *
 *  Hot path: objects are pooled per connection. The cookie stays two 32-bit numbers. */

import type { Bio, BioOwner } from '../block/bio.ts';
import { Outgoing } from './outbox.ts';
import {
  CMD_READ,
  EXTENDED_HEADER_SIZE,
  EXTENDED_REPLY_MAGIC,
  NBD_OK,
  REPLY_ERROR,
  REPLY_FLAG_DONE,
  REPLY_NONE,
  REPLY_OFFSET_DATA,
  setU64,
  SIMPLE_REPLY_MAGIC,
  SIMPLE_REPLY_SIZE,
  STRUCTURED_REPLY_MAGIC,
  STRUCTURED_REPLY_SIZE,
} from './protocol.ts';
import type { HeaderStyle } from './protocol.ts';

/** Who hears of a request's bios. */
export interface RequestHost {
  bioEnded(request: Request, bio: Bio): void;
}

export class Request extends Outgoing implements BioOwner {
  readonly #host: RequestHost;
  command = 0;
  flags = 0;
  cookieHigh = 0;
  cookieLow = 0;
  offset = 0;
  length = 0;
  /** An NBD error number. */
  error = NBD_OK;
  /** Data bytes counted against the connection's limit. */
  charged = 0;
  /** Bytes for which bios were submitted. */
  issued = 0;
  /** Bios under way, plus one while more are to come. */
  pending = 0;

  constructor(host: RequestHost, headerAt: number) {
    super(headerAt);
    this.#host = host;
  }

  reset(command: number, flags: number, cookieHigh: number, cookieLow: number, offset: number, length: number): void {
    this.command = command;
    this.flags = flags;
    this.cookieHigh = cookieHigh;
    this.cookieLow = cookieLow;
    this.offset = offset;
    this.length = length;
    this.error = NBD_OK;
    this.charged = 0;
    this.issued = 0;
    this.pending = 1;
    this.clear();
  }

  bioEnded(bio: Bio): void {
    this.#host.bioEnded(this, bio);
  }
}

/** Writes the reply's header (all of the reply but a read's data) and returns its length. */
export function encodeReply(view: DataView, request: Request, style: HeaderStyle): number {
  const hasData = request.command === CMD_READ && request.error === NBD_OK;
  switch (style) {
    case 'simple':
      return encodeSimple(view, request);
    case 'structured':
      // Successes without data are shorter as simple replies.
      if (request.error === NBD_OK && !hasData) return encodeSimple(view, request);
      return encodeChunk(view, request, false, hasData);
    case 'extended':
      return encodeChunk(view, request, true, hasData);
  }
}

function encodeSimple(view: DataView, request: Request): number {
  const at = request.headerAt;
  view.setUint32(at, SIMPLE_REPLY_MAGIC);
  view.setUint32(at + 4, request.error);
  view.setUint32(at + 8, request.cookieHigh);
  view.setUint32(at + 12, request.cookieLow);
  return SIMPLE_REPLY_SIZE;
}

/** The only chunk of a reply. */
function encodeChunk(view: DataView, request: Request, extended: boolean, hasData: boolean): number {
  const at = request.headerAt;
  if (request.error !== NBD_OK) {
    const end = encodeChunkHeader(view, at, extended, request, REPLY_FLAG_DONE, REPLY_ERROR, 6);
    view.setUint32(end, request.error);
    view.setUint16(end + 4, 0); // no message
    return end + 6 - at;
  }
  if (!hasData) return encodeChunkHeader(view, at, extended, request, REPLY_FLAG_DONE, REPLY_NONE, 0) - at;
  const end = encodeChunkHeader(view, at, extended, request, REPLY_FLAG_DONE, REPLY_OFFSET_DATA, 8 + request.length);
  setU64(view, end, request.offset);
  return end + 8 - at;
}

/** Writes a chunk's header; returns where its payload goes. */
export function encodeChunkHeader(
  view: DataView,
  at: number,
  extended: boolean,
  request: Request,
  flags: number,
  type: number,
  payload: number,
): number {
  view.setUint32(at, extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC);
  view.setUint16(at + 4, flags);
  view.setUint16(at + 6, type);
  view.setUint32(at + 8, request.cookieHigh);
  view.setUint32(at + 12, request.cookieLow);
  if (!extended) {
    view.setUint32(at + 16, payload);
    return at + STRUCTURED_REPLY_SIZE;
  }
  setU64(view, at + 16, request.offset);
  setU64(view, at + 24, payload);
  return at + EXTENDED_HEADER_SIZE;
}
