/** A writable view over a read-only device: what is written goes to a storage, the base stays as it is.
 *
 *  Chunks of 4 KiB are either the base's or owned. An owned chunk lies in the storage, at the same offset
 *  as here: the storage is a sparse file, so that it takes the space of the chunks that were written, and
 *  zeroed chunks are its holes. Which chunks are owned is known in memory alone: the view lives as long as
 *  this object, and a flush makes it no more durable than that.
 *
 *  Fast: reads of one kind of chunk, and writes to owned chunks, are handed on as they are. The first
 *  touch of a chunk fills in from the base what the write leaves of it. While that goes on the chunk is *busy*:
 *  reads still see the base, writes wait. A chunk becomes owned when its data is in the storage, and stays so.
 *
 *      base --first touch--> busy --stored--> owned
 *        ^---------failed------|                                                             */

import { Arena, NO_MEMORY } from '../io/arena.ts';
import { assert, unreachable } from '../util/assert.ts';
import { BlksnapError } from '../util/errors.ts';
import { alignDown, alignUp } from '../util/units.ts';
import { BioQueue, DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, rangeError, runBio } from './bio.ts';
import type { Bio, BioOwner, BioPool } from './bio.ts';
import { ChunkStates } from './chunk-states.ts';
import { pushExtent } from './device.ts';
import type { BlockDevice, Capabilities, Extent } from './device.ts';

export const OVERLAY_CHUNK_BYTES = 4096;
const CHUNK = OVERLAY_CHUNK_BYTES;

/** First touches that fill in at the same time. */
const FILLS = 16;
/** Extents per answer. */
const EXTENTS_LIMIT = 512;

const BASE = 0;
const OWNED = 1;
const BUSY = 2;

export interface OverlayParts {
  readonly base: BlockDevice;
  /** Writable, as large as the base, all zero. Closed with the overlay; the base is not. */
  readonly storage: BlockDevice;
  readonly pool: BioPool;
  readonly arena: Arena;
}

export class OverlayDevice implements BlockDevice {
  readonly name: string;
  readonly readOnly = false;
  readonly capabilities: Capabilities;
  readonly #base: BlockDevice;
  readonly #storage: BlockDevice;
  readonly #pool: BioPool;
  readonly #arena: Arena;
  /** Memory for filling in, set aside so that a bio never waits for memory which the bios behind it hold. */
  readonly #reserve: Arena;
  readonly #reserveAt: number;
  #closed = false;
  readonly #states: ChunkStates;
  /** Bios that touch a busy chunk. */
  readonly #waiting = new BioQueue();
  /** Parts of a read that spans both kinds: the read ends with the last. */
  readonly #parts: BioOwner = { bioEnded: (part) => this.#partEnded(part) };
  /** First touches on their way to the storage. */
  readonly #stores: BioOwner = { bioEnded: (store) => this.#stored(store) };

  /** Errors: ENOMEM when the arena has no room for the overlay's reserve. */
  constructor(name: string, parts: OverlayParts) {
    const { base, storage, pool, arena } = parts;
    assert(storage.size === base.size && !storage.readOnly, 'an overlay storage is writable and as large as its base');
    assert(storage.logicalBlockSize <= base.logicalBlockSize, 'an overlay storage takes the blocks of its base');
    assert(CHUNK % base.logicalBlockSize === 0, 'an overlay chunk has whole blocks');
    this.name = name;
    this.#base = base;
    this.#storage = storage;
    this.#pool = pool;
    this.#arena = arena;
    this.#reserveAt = arena.allocate(FILLS * CHUNK);
    if (this.#reserveAt === NO_MEMORY) {
      throw new BlksnapError('ENOMEM', `Cannot borrow ${FILLS * CHUNK} bytes for overlay "${name}": the arena is full`);
    }
    this.#reserve = new Arena(arena.bytes.buffer, arena.address, { at: this.#reserveAt, length: FILLS * CHUNK });
    this.#states = new ChunkStates(Math.ceil(base.size / CHUNK));
    this.capabilities = { ...storage.capabilities, discard: storage.capabilities.writeZeroes };
  }

  get size(): number {
    return this.#base.size;
  }
  get logicalBlockSize(): number {
    return this.#base.logicalBlockSize;
  }
  get physicalBlockSize(): number {
    return CHUNK;
  }
  /** Bytes that are no longer the base's. */
  get ownedBytes(): number {
    return this.#states.count(OWNED) * CHUNK;
  }

  submit(bio: Bio): void {
    const refused = rangeError(bio, this.size, false);
    if (refused !== 0) {
      bio.end(refused);
      return;
    }
    switch (bio.op) {
      case READ:
        this.#read(bio);
        return;
      case FLUSH:
        this.#storage.submit(bio);
        return;
      case WRITE:
      case WRITE_ZEROES:
      case DISCARD:
        this.#change(bio);
        return;
      default:
        unreachable(bio.op);
    }
  }

  // --- read -----------------------------------------------------------------------------------

  #read(bio: Bio): void {
    const end = bio.offset + bio.length;
    const length = this.#runLength(bio.offset, end);
    if (length === bio.length) {
      this.#deviceAt(bio.offset).submit(bio);
      return;
    }
    bio.progress = 1; // Parts under way, and this loop.
    bio.status = 0;
    for (let offset = bio.offset; offset < end;) {
      const partLength = this.#runLength(offset, end);
      const part = this.#pool.get(READ, offset, partLength, bio.at + (offset - bio.offset), 0, this.#parts);
      part.tag = bio;
      bio.progress++;
      this.#deviceAt(offset).submit(part);
      offset += partLength;
    }
    this.#readProgressed(bio);
  }

  /** Bytes from `offset` that lie on one device. */
  #runLength(offset: number, end: number): number {
    const owned = this.#states.get(Math.floor(offset / CHUNK)) === OWNED;
    let next = alignDown(offset, CHUNK) + CHUNK;
    while (next < end && (this.#states.get(next / CHUNK) === OWNED) === owned) next += CHUNK;
    return Math.min(next, end) - offset;
  }

  #deviceAt(offset: number): BlockDevice {
    return this.#states.get(Math.floor(offset / CHUNK)) === OWNED ? this.#storage : this.#base;
  }

  #partEnded(part: Bio): void {
    const bio = part.tag as Bio;
    if (part.status !== 0) bio.status = part.status;
    this.#pool.put(part);
    this.#readProgressed(bio);
  }

  #readProgressed(bio: Bio): void {
    bio.progress--;
    if (bio.progress === 0) bio.end(bio.status);
  }

  // --- write, writeZeroes ---------------------------------------------------------------------

  #change(bio: Bio): void {
    const first = Math.floor(bio.offset / CHUNK);
    const last = Math.floor((bio.offset + bio.length - 1) / CHUNK);
    let allOwned = true;
    for (let chunk = first; chunk <= last; chunk++) {
      const state = this.#states.get(chunk);
      if (state === BUSY) {
        this.#waiting.push(bio);
        return;
      }
      if (state !== OWNED) allOwned = false;
    }
    if (allOwned && bio.op !== DISCARD) {
      this.#storage.submit(bio);
      return;
    }
    for (let chunk = first; chunk <= last; chunk++) {
      if (this.#states.get(chunk) === BASE) this.#states.set(chunk, BUSY);
    }
    const head = bio.offset % CHUNK !== 0 && this.#states.get(first) === BUSY;
    const tail = this.#endsInChunk(bio) && this.#states.get(last) === BUSY;
    if (head || tail) void this.#fillThenStore(bio, head, tail);
    else this.#store(bio);
  }

  #endsInChunk(bio: Bio): boolean {
    const end = bio.offset + bio.length;
    return end % CHUNK !== 0 && end !== this.size;
  }

  /** Slow path: copies from the base what the bio leaves of its first and last chunk. */
  async #fillThenStore(bio: Bio, head: boolean, tail: boolean): Promise<void> {
    const end = bio.offset + bio.length;
    const chunkStart = alignDown(bio.offset, CHUNK);
    const chunkEnd = Math.min(this.size, alignUp(end, CHUNK));
    let status = head ? await this.#copy(chunkStart, bio.offset) : 0;
    if (status === 0 && tail) status = await this.#copy(end, chunkEnd);
    if (status === 0) this.#store(bio);
    else this.#settle(bio, status);
  }

  /** Copies [from, to), less than a chunk, from the base to the storage. Resolves with 0 or an errno. */
  async #copy(from: number, to: number): Promise<number> {
    const length = to - from;
    let at = this.#reserve.allocate(length);
    while (at === NO_MEMORY) {
      await new Promise<void>((resolve) => this.#reserve.whenFreed(resolve));
      at = this.#reserve.allocate(length);
    }
    let status = await runBio(this.#pool, this.#base, { op: READ, offset: from, length, at });
    if (status === 0) status = await runBio(this.#pool, this.#storage, { op: WRITE, offset: from, length, at });
    this.#reserve.release(at);
    return status;
  }

  #store(bio: Bio): void {
    // What is discarded must not show the base again: it becomes zeros, which take no space.
    const op = bio.op === DISCARD ? WRITE_ZEROES : bio.op;
    const store = this.#pool.get(op, bio.offset, bio.length, bio.at, bio.flags, this.#stores);
    store.tag = bio;
    this.#storage.submit(store);
  }

  #stored(store: Bio): void {
    const bio = store.tag as Bio;
    const { status } = store;
    this.#pool.put(store);
    this.#settle(bio, status);
  }

  /** The busy chunks of a bio are owned now, or the base's again. */
  #settle(bio: Bio, status: number): void {
    const last = Math.floor((bio.offset + bio.length - 1) / CHUNK);
    for (let chunk = Math.floor(bio.offset / CHUNK); chunk <= last; chunk++) {
      if (this.#states.get(chunk) === BUSY) this.#states.set(chunk, status === 0 ? OWNED : BASE);
    }
    bio.end(status);
    // Each waiter once: whoever meets another busy chunk goes back to the end of the queue.
    for (let left = this.#waiting.length; left > 0; left--) {
      const waiter = this.#waiting.shift();
      if (waiter === null) break;
      this.#change(waiter);
    }
  }

  // --- extents --------------------------------------------------------------------------------

  async extents(offset: number, length: number): Promise<Extent[]> {
    const list: Extent[] = [];
    const end = offset + length;
    for (let at = offset; at < end && list.length < EXTENTS_LIMIT;) {
      const run = this.#runLength(at, end);
      for (const extent of await this.#deviceAt(at).extents(at, run)) {
        pushExtent(list, extent.length, extent.hole, extent.zero);
        at += extent.length;
      }
    }
    return list;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#arena.release(this.#reserveAt);
    await this.#storage.close();
  }
}
