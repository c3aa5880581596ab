/** Diff storage: where one snapshot keeps saved chunks, as a log of chunk-sized positions.
 *
 *  One or several pieces, filled one after another: files, kernel devices, memory. A piece may be
 *  added, or the limit raised, while the snapshot is held. Space goes back when the storage closes,
 *  and by hole punching before. Stores of one turn of the reactor leave in one gathering write.
 *
 *  Never fails an origin: it reports, and the diff area decides. Knows nothing of devices.
 *
 *  Invariant: between the positions of two pieces one is left out, so a row of positions never spans pieces. */

import { assert } from '../util/assert.ts';
import { BlksnapError, ERRNO } from '../util/errors.ts';
import { MIB, formatSize } from '../util/units.ts';
import { NO_MEMORY } from '../io/arena.ts';
import { ALLOCATE_PUNCH_HOLE, completed } from '../io/reactor.ts';
import type { Completion, Reactor } from '../io/reactor.ts';
import type { Segments } from '../io/segments.ts';
import { CHUNK, MAX_POSITION } from './chunk-table.ts';
import { DEFAULT_PARAMETERS } from './parameters.ts';
import { LABEL_CHUNKS, writeLabel } from './storage-label.ts';
import { StoragePiece } from './storage-piece.ts';
import { openStoragePlace } from './storage-place.ts';
import type { StoragePlace } from './storage-place.ts';

/** Segments of one gathering write (IOV_MAX), and how many bytes make it worth sending at once. */
const MAX_SEGMENTS = 1024;
const FLUSH_BYTES = 2 * MIB;

export interface DiffStorageOptions {
  /** A directory, a file that does not exist yet or has no content, a kernel device, or MEMORY_STORAGE. */
  readonly path: string;
  /** Bytes; Infinity for as much as the place holds. */
  readonly limitBytes: number;
  /** What is reserved at a time. */
  readonly portionBytes?: number;
  /** A place that is open already, and the storage's from then on; `path` is then its name alone. */
  readonly place?: StoragePlace;
  /** Of a persistent snapshot: each piece has a label at its start (storage-label.ts), for it to be known again. */
  readonly persistentId?: string;
}

/** What may refuse a place by throwing: by its descriptor, and, once it is ready, before anything is stored there. */
export interface PlaceHooks {
  readonly check?: (fd: number) => void;
  readonly before?: (piece: StoragePiece) => Promise<void>;
}

/** Who hears that stored memory may be given back. `status` is 0 or an errno. */
export interface Stored {
  stored(status: number): void;
}

export interface StorageListener {
  /** Free space fell under half a portion and cannot grow. Told once, and once more after each enlargement. */
  lowSpace(storage: DiffStorage): void;
  /** Something that was stored is lost. May be told again. */
  lost(storage: DiffStorage, errno: number): void;
}

/** A gathering write of contiguous positions. */
class Batch implements Completion {
  /** Pairs of (arena place, bytes). */
  readonly segments = new Float64Array(MAX_SEGMENTS * 2);
  readonly runs: Stored[] = [];
  count = 0;
  bytes = 0;
  position = 0;
  piece!: StoragePiece;
  readonly #storage: DiffStorage;

  constructor(storage: DiffStorage) {
    this.#storage = storage;
  }

  complete(result: number): void {
    const status = result === this.bytes ? this.piece.lost() : result < 0 ? -result : ERRNO.ENOSPC;
    this.#storage.batchEnded(this, status);
  }
}

export class DiffStorage {
  readonly #reactor: Reactor;
  readonly #listener: StorageListener;
  readonly #pieces: StoragePiece[] = [];
  /** The piece that is being filled. */
  #current!: StoragePiece;
  #toldLow = false;
  #freed = 0;
  #batch: Batch | null = null;
  readonly #spareBatches: Batch[] = [];
  #writing = 0;
  #closing = false;

  /** Errors: ENOENT, EACCES, EEXIST (a file with content), EBUSY (a device in use), EINVAL, ENOSPC. */
  static async open(reactor: Reactor, options: DiffStorageOptions, listener: StorageListener): Promise<DiffStorage> {
    const storage = new DiffStorage(reactor, listener);
    storage.#current = await storage.#addPiece(options, {});
    return storage;
  }

  /** Of pieces that were filled by another process; the last is filled on. */
  static reopen(reactor: Reactor, pieces: readonly StoragePiece[], listener: StorageListener): DiffStorage {
    const storage = new DiffStorage(reactor, listener);
    for (const [i, piece] of pieces.entries()) {
      const before = pieces[i - 1];
      piece.base = before === undefined ? 0 : before.base + before.next + 1;
      storage.#adopt(piece);
      if (i === 0 || piece.used > LABEL_CHUNKS) storage.#current = piece;
    }
    return storage;
  }

  private constructor(reactor: Reactor, listener: StorageListener) {
    this.#reactor = reactor;
    this.#listener = listener;
  }

  /** In the order in which they are filled. */
  get pieces(): readonly StoragePiece[] {
    return this.#pieces;
  }

  get path(): string {
    return this.#pieces[0]!.path;
  }

  get usedBytes(): number {
    return (this.#given - this.#freed) * CHUNK;
  }

  /** Chunks given out so far. */
  get #given(): number {
    return this.#pieces.reduce((sum, piece) => sum + piece.used, 0);
  }

  get reservedBytes(): number {
    return this.#pieces.reduce((sum, piece) => sum + piece.reservedBytes, 0);
  }

  /** Infinity where a piece has no limit but its place. */
  get limitBytes(): number {
    return this.#pieces.reduce((sum, piece) => sum + piece.limitBytes, 0);
  }

  /** What it grows by where it is filled now. */
  get portionBytes(): number {
    return this.#current.portionBytes;
  }

  // --- pieces ---------------------------------------------------------------------------------

  /** Adds a place, used when those before it are full.
   *  Errors: as for open. The storage is then as before. */
  async addPlace(options: DiffStorageOptions, hooks: PlaceHooks): Promise<void> {
    await this.#addPiece(options, hooks);
    this.#toldLow = false;
  }

  /** Lets `limitBytes` be kept in all. Errors: EINVAL when that is less than before, or when the last place cannot grow. */
  raiseLimit(limitBytes: number): void {
    const before = this.limitBytes;
    const last = this.#pieces.at(-1)!;
    if (limitBytes <= before) {
      throw new BlksnapError(
        'EINVAL',
        `Cannot set the limit to ${written(limitBytes)}: it is ${written(before)}, want more`,
      );
    }
    last.raiseLimit(last.limitBytes + limitBytes - before);
    if (this.limitBytes < limitBytes) {
      throw new BlksnapError(
        'EINVAL',
        `Cannot set the limit to ${written(limitBytes)}: "${last.path}" ends at ${written(this.limitBytes)}; append another place`,
      );
    }
    this.#toldLow = false;
  }

  async #addPiece(options: DiffStorageOptions, { check, before }: PlaceHooks): Promise<StoragePiece> {
    const { path, limitBytes, portionBytes = DEFAULT_PARAMETERS.storagePortionBytes, persistentId } = options;
    const action = `Cannot use "${path}" as diff storage`;
    const used = persistentId === undefined ? 0 : LABEL_CHUNKS;
    if (limitBytes < (1 + used) * CHUNK)
      throw new BlksnapError('EINVAL', `${action}: limit ${limitBytes} bytes, want at least ${(1 + used) * CHUNK}`);
    const place =
      options.place ?? (await openStoragePlace(this.#reactor, path, action, { emptyOnly: persistentId !== undefined }));
    // Its positions are given when it is its turn: only then is it known where the piece before it ended.
    const piece = new StoragePiece(this.#reactor, { path, place, limitBytes, portionBytes, used });
    try {
      check?.(place.fd);
      if ((await piece.reserve()) !== 0) {
        throw new BlksnapError(
          'ENOSPC',
          `${action}: no room for the first ${piece.portionBytes} bytes; free some, or set a lower limit`,
        );
      }
      if (persistentId !== undefined)
        await writeLabel(this.#reactor, piece, { id: persistentId, piece: this.#pieces.length });
      await before?.(piece);
    } catch (cause) {
      await piece.close();
      throw cause;
    }
    this.#adopt(piece);
    return piece;
  }

  #adopt(piece: StoragePiece): void {
    piece.onFull = () => this.#watchSpace();
    piece.onLost = (errno) => this.#listener.lost(this, errno);
    this.#pieces.push(piece);
  }

  /** From the current piece backwards: those whose turn has not come have no base yet. */
  #pieceOf(position: number): StoragePiece {
    let piece = this.#current;
    for (let i = this.#pieces.indexOf(piece); position < piece.base;) piece = this.#pieces[--i]!;
    return piece;
  }

  /** Where a position lies: the number of its piece, and the place in that. */
  pieceIndexOf(position: number): number {
    return this.#pieces.indexOf(this.#pieceOf(position));
  }

  // --- giving out space -----------------------------------------------------------------------

  /** Gives out `count` positions in a row and returns the first, or -1 when there is no room for them. */
  allocate(count: number): number {
    for (;;) {
      const piece = this.#current;
      const position = piece.base + piece.next;
      if (position + count > MAX_POSITION) return -1;
      if (piece.allocate(count) >= 0) {
        this.#watchSpace();
        return position;
      }
      const next = this.#pieces[this.#pieces.indexOf(piece) + 1];
      if (next === undefined) {
        this.#tellLow();
        return -1;
      }
      next.base = position + 1;
      this.#current = next;
    }
  }

  // Of storage in memory, room is taken before it is known what of it will be kept: old data is read straight into it.

  /** How many chunks in a row `take` has now, at most `count`: 0 where it has none, or no more. */
  room(count: number): number {
    return this.#current.slabs?.room(count) ?? 0;
  }

  /** The first of `count` positions in a row, not more than `room` said. They are to be kept or dropped. */
  take(count: number): number {
    return this.#current.base + this.#current.slabs!.take(count);
  }

  /** Counts `count` of the chunks that were taken from `position` on as in use; false when there is no room for them. */
  keep(position: number, count: number): boolean {
    const kept = this.#pieceOf(position).keep(count);
    if (kept) this.#watchSpace();
    return kept;
  }

  /** Gives chunks back that were taken and not kept. */
  drop(position: number, count: number): void {
    const piece = this.#pieceOf(position);
    piece.slabs!.discard(position - piece.base, count);
  }

  /** The place of a chunk in memory; NO_MEMORY when it must be read. */
  placeOf(position: number): number {
    const { slabs, base } = this.#pieceOf(position);
    return slabs === null ? NO_MEMORY : slabs.placeOf(position - base);
  }

  #watchSpace(): void {
    if (this.#current === this.#pieces.at(-1) && this.#current.low) this.#tellLow();
  }

  #tellLow(): void {
    if (this.#toldLow) return;
    this.#toldLow = true;
    this.#listener.lowSpace(this);
  }

  /** Gives space back to the file system, and counts it as free once it is. Best effort: a storage that cannot punch
   *  keeps it until it closes. */
  punch(position: number, count: number): void {
    const piece = this.#pieceOf(position);
    if (this.placeOf(position) !== NO_MEMORY) {
      this.drop(position, count);
      this.#freed += count;
      piece.freed(count);
      return;
    }
    this.#writing++;
    this.#reactor.allocate(piece.fd, ALLOCATE_PUNCH_HOLE, (position - piece.base) * CHUNK, count * CHUNK, {
      complete: (result) => {
        this.#writing--;
        if (result < 0) return;
        this.#freed += count;
        piece.freed(count);
      },
    });
  }

  // --- storing, reading -----------------------------------------------------------------------

  /** Reads from a row of positions, `skip` bytes into the first, what all segments take. */
  read(position: number, skip: number, to: Segments, completion: Completion): void {
    const { fd, base, inMemory } = this.#pieceOf(position);
    const offset = (position - base) * CHUNK + skip;
    const at = to.segments[0]!;
    const length = to.segments[1]!;
    if (to.count > 1) this.#reactor.readScatter(fd, to, offset, inMemory, completion);
    else if (inMemory) this.#reactor.readCached(fd, at, length, offset, completion);
    else this.#reactor.read(fd, at, length, offset, completion);
  }

  /** To be asked after each read: 0, or an errno when what was read there may not be what was stored. */
  lostAt(position: number): number {
    return this.#pieceOf(position).lost();
  }

  /** Writes to a row of positions, at once. */
  write(position: number, from: { readonly at: number; readonly length: number }, completion: Completion): void {
    const piece = this.#pieceOf(position);
    this.#reactor.write(piece.fd, from.at, from.length, (position - piece.base) * CHUNK, false, completion);
  }

  /** Adds a segment of arena memory for `position`, to be written at the end of the turn.
   *  `run`, if given, hears of the end of the batch that the segment is in. */
  append(position: number, at: number, bytes: number, run: Stored | null): void {
    let batch = this.#batch;
    if (
      batch !== null &&
      (batch.count === MAX_SEGMENTS || batch.bytes >= FLUSH_BYTES || batch.position + batch.bytes / CHUNK !== position)
    ) {
      this.flush();
      batch = null;
    }
    if (batch === null) {
      batch = this.#batch = this.#spareBatches.pop() ?? new Batch(this);
      batch.position = position;
      batch.piece = this.#pieceOf(position);
    }
    const last = (batch.count - 1) * 2;
    if (last >= 0 && at === batch.segments[last]! + batch.segments[last + 1]!) {
      batch.segments[last + 1]! += bytes;
    } else {
      batch.segments[batch.count * 2] = at;
      batch.segments[batch.count * 2 + 1] = bytes;
      batch.count++;
    }
    batch.bytes += bytes;
    if (run !== null) batch.runs.push(run);
  }

  /** Sends what was appended. Called at the end of every turn. */
  flush(): void {
    const batch = this.#batch;
    if (batch === null) return;
    this.#batch = null;
    this.#writing++;
    const { fd, base, reserving } = batch.piece;
    const { segments, count } = batch;
    const offset = (batch.position - base) * CHUNK;
    // Reserving space locks the file for as long as it takes: not a time to write on this thread.
    if (reserving) this.#reactor.writeGather(fd, segments, count, offset, batch);
    else this.#reactor.writeGatherCached(fd, segments, count, offset, batch);
  }

  batchEnded(batch: Batch, status: number): void {
    this.#writing--;
    for (const run of batch.runs) run.stored(status);
    batch.runs.length = 0;
    batch.count = 0;
    batch.bytes = 0;
    this.#spareBatches.push(batch);
  }

  // --------------------------------------------------------------------------------------------

  /** What is stored outlives the machine. 0 or an errno. */
  async sync(): Promise<number> {
    await this.#settle();
    for (const piece of this.#pieces) {
      const status = await piece.sync();
      if (status !== 0) return status;
    }
    return 0;
  }

  async #settle(): Promise<void> {
    this.flush();
    while (this.#writing > 0 || this.#pieces.some(({ reserving }) => reserving))
      await completed((c) => void this.#reactor.timer(1, c));
  }

  /** Waits for writes under way and frees all space; with `keep`, places with a name stay as they are.
   *  Safe to call twice. */
  async close(keep = false): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    await this.#settle();
    assert(this.#batch === null, 'nothing is appended to a closing storage');
    for (const piece of this.#pieces) await piece.close(keep);
  }
}

function written(bytes: number): string {
  return Number.isFinite(bytes) ? formatSize(bytes) : 'none';
}
