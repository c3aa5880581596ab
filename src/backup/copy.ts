/** Copies ranges of a device to a sink: reads run ahead, writes start in the order of offsets.
 *
 *  What reads as zeros is never written as data: zero extents are not even read, and data is looked
 *  through granule by granule. The memory is fixed: a few pieces of the reactor's arena, taken
 *  at the start, at most half of it, so that the sink finds room too.
 *  Fails with the first error, after everything under way has ended. */

import { runBio, READ } from '../block/bio.ts';
import type { BioPool } from '../block/bio.ts';
import type { BlockDevice } from '../block/device.ts';
import { NO_MEMORY } from '../io/arena.ts';
import type { Reactor } from '../io/reactor.ts';
import { cancellation, checkGoingOn } from '../util/cancel.ts';
import { BlksnapError, errnoError, toBlksnapError } from '../util/errors.ts';
import { isZero } from '../util/zeroes.ts';
import { MIB, alignDown, alignUp } from '../util/units.ts';
import { totalBytes } from './ranges.ts';
import type { ByteRange } from './ranges.ts';

/** Of memory: small ranges share one, and are stored together. */
const PIECE_BYTES = MIB;
const PIECES = 8;
/** How many ranges may be told to be done at a time, before the next are read. */
const ANNOUNCING = 256;
/** How far ahead one question about extents reaches. */
const EXTENTS_AHEAD_BYTES = 1024 * MIB;
const PROGRESS_INTERVAL_MS = 100;

/** Where copies go. Calls come in order of offset; the next may come before the last has ended. */
export interface CopySink {
  /** The memory at `at` stays untouched until the promise resolves. */
  write(offset: number, at: number, length: number): Promise<void>;
  zero(offset: number, length: number): Promise<void>;
}

export interface CopyProgress {
  /** Bytes of the disk dealt with, and to deal with in all. */
  readonly bytesDone: number;
  readonly bytesTotal: number;
  /** Bytes read from the source, and handed on as data. */
  readonly bytesRead: number;
  readonly bytesStored: number;
  readonly seconds: number;
}

export interface CopyContext {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  /** Called about ten times a second, and at the end. */
  readonly onProgress?: ((progress: CopyProgress) => void) | undefined;
  /** Called, in the order of offsets, when a range is where it should go, and will not be read again; must not reject. */
  readonly onDone?: ((range: ByteRange) => Promise<void>) | undefined;
  /** Aborted: the copy fails with ECANCELED. */
  readonly signal?: AbortSignal | undefined;
}

/** Copies `ranges` (in order, aligned to `granule` but for the device's end). */
export async function copyRanges(
  from: BlockDevice,
  to: CopySink,
  options: CopyContext & { readonly ranges: readonly ByteRange[]; readonly granule: number },
): Promise<CopyProgress> {
  const copy = new Copy(from, to, options);
  try {
    for (const range of options.ranges) await copy.range(range);
  } catch (cause) {
    copy.fail(cause);
  }
  return await copy.end();
}

/** A part of a range in a piece of memory, and the errno that its read will end with. */
interface Part extends ByteRange {
  readonly at: number;
  readonly reading: Promise<number>;
}

interface Piece {
  readonly at: number;
  used: number;
  readonly parts: Part[];
}

class Copy {
  readonly #from: BlockDevice;
  readonly #to: CopySink;
  readonly #context: CopyContext;
  readonly #granule: number;
  readonly #pieces: number[] = [];
  readonly #free: number[] = [];
  /** Is being filled. */
  #open: Piece | null = null;
  /** Ranges that are being told to be done. */
  #announcing = 0;
  #wake: (() => void) | null = null;
  #error: BlksnapError | null = null;
  /** Resolves when everything handed in so far has been started on the sink. */
  #started: Promise<void> = Promise.resolve();
  /** Resolves when all of it has been told to be done, or has failed. */
  #told: Promise<void> = Promise.resolve();
  readonly #bytesTotal: number;
  #bytesDone = 0;
  #bytesRead = 0;
  #bytesStored = 0;
  readonly #startMs: number;
  #reportedMs: number;

  constructor(
    from: BlockDevice,
    to: CopySink,
    options: CopyContext & { readonly ranges: readonly ByteRange[]; readonly granule: number },
  ) {
    this.#from = from;
    this.#to = to;
    this.#context = options;
    this.#granule = options.granule;
    this.#bytesTotal = totalBytes(options.ranges);
    const { arena } = options.reactor;
    const limit = Math.max(1, Math.min(PIECES, Math.floor(arena.size / 2 / PIECE_BYTES)));
    for (let at = 0; this.#pieces.length < limit && (at = arena.allocate(PIECE_BYTES)) !== NO_MEMORY;)
      this.#pieces.push(at);
    this.#free.push(...this.#pieces);
    if (this.#pieces.length === 0)
      throw new BlksnapError('ENOMEM', `Cannot copy: no ${PIECE_BYTES} bytes of buffer memory are free`);
    this.#startMs = performance.now();
    this.#reportedMs = this.#startMs;
  }

  /** What fails after a cancel fails for it: its source may have been cut off. */
  fail(cause: unknown): void {
    const { signal } = this.#context;
    this.#error ??= signal?.aborted === true ? cancellation(signal) : toBlksnapError(cause);
  }

  /** Goes through the extents of a range. A granule with any data in it is data. */
  async range({ offset, length }: ByteRange): Promise<void> {
    // To ask what is in it would take as long as to read it.
    if (length <= PIECE_BYTES) return await this.#data(offset, length);
    const end = offset + length;
    let dealtWith = offset;
    for (let position = offset; position < end;) {
      const extents = await this.#from.extents(position, Math.min(end - position, EXTENTS_AHEAD_BYTES));
      for (const extent of extents) {
        const extentEnd = Math.min(position + extent.length, end);
        if (!extent.zero) {
          const dataStart = Math.max(dealtWith, alignDown(position, this.#granule));
          const dataEnd = Math.min(alignUp(extentEnd, this.#granule), end);
          if (dataStart > dealtWith) await this.#zero(dealtWith, dataStart - dealtWith);
          for (let at = dataStart; at < dataEnd; at += PIECE_BYTES)
            await this.#data(at, Math.min(PIECE_BYTES, dataEnd - at));
          dealtWith = Math.max(dealtWith, dataEnd);
        }
        position = extentEnd;
      }
    }
    if (end > dealtWith) await this.#zero(dealtWith, end - dealtWith);
  }

  /** Waits for what is under way, gives the memory back, and tells how it went. */
  async end(): Promise<CopyProgress> {
    this.#close();
    await this.#told;
    while (this.#free.length < this.#pieces.length || this.#announcing > 0) await this.#nextFree();
    await this.#started;
    for (const at of this.#pieces) this.#context.reactor.arena.release(at);
    if (this.#error !== null) throw this.#error;
    const progress = this.#progress();
    this.#context.onProgress?.(progress);
    return progress;
  }

  #checkGoingOn(): void {
    checkGoingOn(this.#context.signal);
    if (this.#error !== null) throw this.#error;
  }

  /** A piece of memory with room for so much. Throws when there is no point in going on. */
  async #room(length: number): Promise<Piece> {
    if (this.#open !== null && this.#open.used + length > PIECE_BYTES) this.#close();
    return (this.#open ??= { at: await this.#memory(), used: 0, parts: [] });
  }

  async #memory(): Promise<number> {
    for (;;) {
      this.#checkGoingOn();
      const at = this.#announcing < ANNOUNCING ? this.#free.pop() : undefined;
      if (at !== undefined) return at;
      await this.#nextFree();
    }
  }

  #nextFree(): Promise<void> {
    return new Promise((resolve) => (this.#wake = resolve));
  }

  #giveBack(at: number): void {
    this.#free.push(at);
    this.#wakeUp();
  }

  #wakeUp(): void {
    this.#wake?.();
    this.#wake = null;
  }

  async #data(offset: number, length: number): Promise<void> {
    const piece = await this.#room(length);
    const at = piece.at + piece.used;
    const reading = runBio(this.#context.pool, this.#from, { op: READ, offset, length, at });
    piece.parts.push({ offset, length, at, reading });
    piece.used += length;
    if (piece.used === PIECE_BYTES) this.#close();
  }

  /** Has the open piece stored: nothing more will be read into it. */
  #close(): void {
    if (this.#open === null) return;
    const turn = this.#started;
    let start!: () => void;
    this.#started = new Promise((resolve) => (start = resolve));
    this.#announce(this.#open.parts, this.#store(this.#open, { turn, start }));
    this.#open = null;
  }

  /** Writes a piece once it is read and the piece before has been started. Never rejects. */
  async #store(
    { at, used, parts }: Piece,
    order: { readonly turn: Promise<void>; readonly start: () => void },
  ): Promise<void> {
    try {
      const statuses = await Promise.all(parts.map(({ reading }) => reading));
      for (const [index, { offset, length }] of parts.entries()) {
        if (statuses[index] !== 0)
          throw errnoError(statuses[index]!, `Cannot read ${length} bytes at offset ${offset} of "${this.#from.name}"`);
        this.#bytesRead += length;
      }
      await order.turn;
      if (this.#error !== null) return;
      const writes = parts.flatMap((part) => this.#startWrites(part));
      order.start();
      // Not `all`: the memory may be given back only when every write has ended.
      for (const outcome of await Promise.allSettled(writes)) if (outcome.status === 'rejected') throw outcome.reason;
      this.#advance(used);
    } catch (cause) {
      this.fail(cause);
    } finally {
      order.start();
      this.#giveBack(at);
    }
  }

  /** Tells that ranges are done once they are stored, and what came before was told; beside the reads of the next ones. */
  #announce(ranges: readonly ByteRange[], stored: Promise<void>): void {
    const before = this.#told;
    this.#told = (async () => {
      await stored;
      await before;
      if (this.#error === null) for (const { offset, length } of ranges) void this.#tell({ offset, length });
    })();
  }

  async #tell(range: ByteRange): Promise<void> {
    this.#announcing++;
    try {
      await this.#context.onDone?.(range);
    } catch (cause) {
      this.fail(cause);
    } finally {
      this.#announcing--;
      this.#wakeUp();
    }
  }

  #startWrites({ offset, at, length }: Part): Array<Promise<void>> {
    const data = this.#context.reactor.arena.bytes.subarray(at, at + length);
    const zeroAt = (start: number): boolean => isZero(data.subarray(start, start + this.#granule));
    const writes: Array<Promise<void>> = [];
    for (let start = 0; start < length;) {
      const zero = zeroAt(start);
      let end = start + this.#granule;
      while (end < length && zeroAt(end) === zero) end += this.#granule;
      const run = Math.min(end, length) - start;
      if (zero) {
        writes.push(this.#to.zero(offset + start, run));
      } else {
        writes.push(this.#to.write(offset + start, at + start, run));
        this.#bytesStored += run;
      }
      start += run;
    }
    return writes;
  }

  async #zero(offset: number, length: number): Promise<void> {
    this.#close();
    await this.#started;
    this.#checkGoingOn();
    while (this.#announcing >= ANNOUNCING) await this.#nextFree();
    await this.#to.zero(offset, length);
    this.#announce([{ offset, length }], Promise.resolve());
    this.#advance(length);
  }

  #advance(length: number): void {
    this.#bytesDone += length;
    if (this.#context.onProgress === undefined) return;
    const now = performance.now();
    if (now - this.#reportedMs < PROGRESS_INTERVAL_MS) return;
    this.#reportedMs = now;
    this.#context.onProgress(this.#progress());
  }

  #progress(): CopyProgress {
    return {
      bytesDone: this.#bytesDone,
      bytesTotal: this.#bytesTotal,
      bytesRead: this.#bytesRead,
      bytesStored: this.#bytesStored,
      seconds: (performance.now() - this.#startMs) / 1000,
    };
  }
}
