/** What was written to a snapshot image: its own chunks, in the snapshot's storage.
 *
 *  Slow path by choice: one write at a time, in order, so that read-modify-write of partial chunks
 *  needs no locks. A chunk appears in the table only when its whole content is stored. */

import { NO_MEMORY } from '../io/arena.ts';
import type { Reactor } from '../io/reactor.ts';
import { completed } from '../io/reactor.ts';
import { BioQueue, READ, WRITE, runBio } from '../block/bio.ts';
import type { Bio, BioPool, BioSink } from '../block/bio.ts';
import { ERRNO, BlksnapError, codeOfErrno } from '../util/errors.ts';
import { CHUNK, ChunkTable, FIRST_POSITION, UNSAVED, ZERO, chunkOf } from './chunk-table.ts';
import type { ChunkIndex } from './chunk-table.ts';
import type { DiffStorage } from './diff-storage.ts';

export interface ImageOverlayOptions {
  /** Reads show the image as it is; `ended` takes each write back. */
  readonly image: BioSink & { ended(bio: Bio, status: number): void };
  readonly storage: DiffStorage;
  readonly reactor: Reactor;
  readonly pool: BioPool;
  readonly size: number;
}

export class ImageOverlay {
  readonly table: ChunkTable;
  readonly #o: ImageOverlayOptions;
  readonly #queue = new BioQueue();
  #working = false;
  /** One chunk of memory for read-modify-write; taken at the first write. */
  #scratch = NO_MEMORY;

  constructor(options: ImageOverlayOptions) {
    this.#o = options;
    this.table = new ChunkTable(options.size);
  }

  submit(bio: Bio): void {
    this.#queue.push(bio);
    if (!this.#working) void this.#work();
  }

  async #work(): Promise<void> {
    this.#working = true;
    for (let bio = this.#queue.shift(); bio !== null; bio = this.#queue.shift()) {
      const status = await this.#write(bio).then(
        () => 0,
        (error: unknown) => (error instanceof BlksnapError ? error.errno : ERRNO.EIO),
      );
      this.#o.image.ended(bio, status);
    }
    this.#working = false;
  }

  async #write(bio: Bio): Promise<void> {
    const end = bio.offset + bio.length;
    let from = bio.offset;
    while (from < end) {
      const chunk = chunkOf(from);
      const to = Math.min((chunk + 1) * CHUNK, end);
      const whole = from === chunk * CHUNK && (to === (chunk + 1) * CHUNK || to === this.#o.size);
      if (!whole) {
        await this.#writePart(bio, chunk, from, to);
        from = to;
        continue;
      }
      const last = end === this.#o.size ? chunkOf(end - 1) : ((chunkOf(end) - 1) as ChunkIndex);
      if (bio.op === WRITE) await this.#writeWhole(bio, chunk, last);
      else this.#zeroWhole(chunk, last);
      from = Math.min((last + 1) * CHUNK, end);
    }
  }

  /** A part of one chunk: in place where the overlay has it, else the whole chunk is read, changed and stored. */
  async #writePart(bio: Bio, chunk: ChunkIndex, from: number, to: number): Promise<void> {
    const { reactor, image, pool, size, storage } = this.#o;
    if (this.#scratch === NO_MEMORY) this.#scratch = reactor.arena.allocate(CHUNK);
    const at = this.#scratch;
    if (at === NO_MEMORY) throw new BlksnapError('ENOMEM', 'Cannot write to an image: the arena is full');
    const start = chunk * CHUNK;
    const length = Math.min(CHUNK, size - start);
    reactor.arena.bytes.fill(0, at, at + CHUNK);
    const status = await runBio(pool, image, { op: READ, offset: start, length, at });
    if (status !== 0) throw new BlksnapError(codeOfErrno(status), 'Cannot read the rest of a chunk');
    if (bio.op === WRITE)
      reactor.arena.bytes.copyWithin(at + from - start, bio.at + from - bio.offset, bio.at + to - bio.offset);
    else reactor.arena.bytes.fill(0, at + from - start, at + to - start);
    const value = this.table.get(chunk);
    const position = value >= FIRST_POSITION ? value - FIRST_POSITION : this.#allocate(storage, 1);
    await this.#store(at, CHUNK, position);
    this.table.set(chunk, FIRST_POSITION + position);
  }

  async #writeWhole(bio: Bio, first: ChunkIndex, last: ChunkIndex): Promise<void> {
    const { storage, size } = this.#o;
    let chunk = first;
    while (chunk <= last) {
      const value = this.table.get(chunk);
      const owned = value >= FIRST_POSITION;
      let count = 1;
      while (chunk + count <= last) {
        const next = this.table.get((chunk + count) as ChunkIndex);
        if (owned ? next !== value + count : next >= FIRST_POSITION) break;
        count++;
      }
      const position = owned ? value - FIRST_POSITION : this.#allocate(storage, count);
      const offset = chunk * CHUNK;
      await this.#store(bio.at + offset - bio.offset, Math.min(count * CHUNK, size - offset), position);
      for (let i = 0; i < count; i++) this.table.set((chunk + i) as ChunkIndex, FIRST_POSITION + position + i);
      chunk = (chunk + count) as ChunkIndex;
    }
  }

  #zeroWhole(first: ChunkIndex, last: ChunkIndex): void {
    for (let chunk = first; chunk <= last; chunk++) {
      const value = this.table.get(chunk);
      if (value >= FIRST_POSITION) this.#o.storage.punch(value - FIRST_POSITION, 1);
      if (value !== ZERO) this.table.set(chunk, ZERO);
    }
  }

  #allocate(storage: DiffStorage, count: number): number {
    const position = storage.allocate(count);
    if (position < 0) throw new BlksnapError('ENOSPC', 'Cannot write to an image: the diff storage is full');
    return position;
  }

  async #store(at: number, length: number, position: number): Promise<void> {
    const result = await completed((c) => this.#o.storage.write(position, { at, length }, c));
    if (result !== length)
      throw new BlksnapError(result < 0 ? codeOfErrno(-result) : 'ENOSPC', 'Cannot write to the diff storage');
  }

  /** Gives memory and space back. No write may be under way. */
  close(): void {
    if (this.#scratch !== NO_MEMORY) this.#o.reactor.arena.release(this.#scratch);
    this.#scratch = NO_MEMORY;
    for (const { value } of this.table.entries()) {
      if (value !== UNSAVED && value >= FIRST_POSITION) this.#o.storage.punch(value - FIRST_POSITION, 1);
    }
  }
}
