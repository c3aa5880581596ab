/** A request of our client, from submission to the end of its reply. */

import { Outgoing } from './outbox.ts';
import {
  CMD_BLOCK_STATUS,
  CMD_FLAG_PAYLOAD_LEN,
  CMD_WRITE,
  EXTENDED_HEADER_SIZE,
  EXTENDED_REQUEST_MAGIC,
  EXTENT_LIMIT,
  REQUEST_MAGIC,
  REQUEST_SIZE,
  setU64,
} from './protocol.ts';

const SECTOR = 512;
/** Of one block status, over all contexts: bytes, and chunks. */
const STATUS_LIMIT = 16 * EXTENT_LIMIT + 8;
const CHUNK_LIMIT = 64;

export interface RequestOwner {
  /** `request.errno` is 0 or an errno; the request is the client's again when this returns. */
  requestEnded(request: ClientRequest): void;
}

const NOBODY: RequestOwner = { requestEnded(): void {} };

export class ClientRequest extends Outgoing {
  readonly slot: number;
  /** Counts the slot's uses: with the slot, the cookie. */
  generation = 0;
  command = 0;
  flags = 0;
  offset = 0;
  length = 0;
  /** The data's place (read, write). */
  at = 0;
  owner: RequestOwner = NOBODY;
  errno = 0;
  /** Its memory is no longer being sent. */
  left = false;
  /** The whole reply is there. */
  answered = false;
  /** Read: bytes from the start that are there, and runs that came out of order. */
  covered = 0;
  runs: Array<[start: number, end: number]> | null = null;
  /** Read, block status: bytes in all. */
  received = 0;
  /** Block status: the payloads of the chunks. */
  chunks: Uint8Array[] | null = null;

  constructor(slot: number, headerAt: number) {
    super(headerAt);
    this.slot = slot;
  }

  reset(command: number, flags: number, offset: number, length: number, at: number, owner: RequestOwner): void {
    this.clear();
    this.generation = (this.generation + 1) >>> 0;
    this.command = command;
    this.flags = flags;
    this.offset = offset;
    this.length = length;
    this.at = at;
    this.owner = owner;
    this.errno = 0;
    this.left = false;
    this.answered = false;
    this.covered = 0;
    this.runs = null;
    this.received = 0;
    this.chunks = command === CMD_BLOCK_STATUS ? [] : null;
    if (command === CMD_WRITE) this.addPiece(at, length);
  }

  /** Data of [start, start + length), relative to the request, is coming. False when it is not what was asked. */
  cover(start: number, length: number): boolean {
    if (start < 0 || length <= 0 || length > this.length - start) return false;
    this.received += length;
    if (start === this.covered) this.covered += length;
    else (this.runs ??= []).push([start, start + length]);
    // Out of order they are remembered: no more of them than there are sectors.
    return this.received <= this.length && (this.runs?.length ?? 0) <= this.length / SECTOR;
  }

  /** A block status of so many bytes is coming. False when the server has said too much. */
  takeStatus(bytes: number): boolean {
    this.received += bytes;
    return bytes > 0 && this.received <= STATUS_LIMIT && this.chunks!.length < CHUNK_LIMIT;
  }

  /** Whether the data is complete, without overlap. */
  get complete(): boolean {
    if (this.runs === null) return this.covered === this.length;
    for (const [start, end] of this.runs.toSorted(([a], [b]) => a - b)) {
      if (start !== this.covered) return false;
      this.covered = end;
    }
    return this.covered === this.length;
  }
}

/** Writes the request's header. `contextId` limits a block status to one context (extended headers only). */
export function encodeRequest(view: DataView, request: ClientRequest, extended: boolean, contextId?: number): void {
  const at = request.headerAt;
  const payload = request.command === CMD_WRITE || contextId !== undefined;
  view.setUint32(at, extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC);
  view.setUint16(at + 4, request.flags | (extended && payload ? CMD_FLAG_PAYLOAD_LEN : 0));
  view.setUint16(at + 6, request.command);
  view.setUint32(at + 8, request.generation);
  view.setUint32(at + 12, request.slot);
  setU64(view, at + 16, request.offset);
  if (!extended) {
    view.setUint32(at + 24, request.length);
    request.headerLength = REQUEST_SIZE;
  } else if (contextId === undefined) {
    setU64(view, at + 24, request.length);
    request.headerLength = EXTENDED_HEADER_SIZE;
  } else {
    setU64(view, at + 24, 12);
    setU64(view, at + 32, request.length);
    view.setUint32(at + 40, contextId);
    request.headerLength = EXTENDED_HEADER_SIZE + 12;
  }
}
