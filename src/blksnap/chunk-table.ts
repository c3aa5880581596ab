/** Which chunks of a device were saved, and where: a sparse table with one u32 per chunk.
 *
 *  Memory is taken only for the 4 MiB neighbourhoods (1024 chunks) in which something was saved; those
 *  that are zeros or gone throughout share one.
 *
 *      value                meaning
 *      0                    not saved
 *      1                    saved: all zeros, stored nowhere
 *      2 .. 2^31-2          saved: at storage position value - 2 (in chunks)
 *      2^31-1               gone: its readers are done with it, it is saved for nobody
 *      2^31 | run           saved: in memory, being stored; `run` indexes the area's runs
 *      3*2^30 | run         being read: not saved yet */

/** Bytes per chunk, the unit of copy-on-write. */
export const CHUNK = 4096;

declare const chunkBrand: unique symbol;
/** Number of a chunk of a device: offset / CHUNK. */
export type ChunkIndex = number & { readonly [chunkBrand]: true };

export const UNSAVED = 0;
export const ZERO = 1;
export const FIRST_POSITION = 2;
export const GONE = 0x7fff_ffff;
export const STORING = 0x8000_0000;
export const READING = 0xc000_0000;
const RUN_MASK = 0x3fff_ffff;
/** The most chunks that one storage can hold: 8 TiB. */
export const MAX_POSITION = GONE - FIRST_POSITION;

/** Chunks of a neighbourhood. */
export const LEAF = 1024;
/** Shared, never changed: `set` makes a copy. */
const ZEROS = new Uint32Array(LEAF).fill(ZERO);
const GONES = new Uint32Array(LEAF).fill(GONE);

export function chunkOf(offset: number): ChunkIndex {
  return Math.floor(offset / CHUNK) as ChunkIndex;
}

/** Whether a write need not wait: the chunk's old data is safe, in memory or in the storage, or nobody's any more. */
export function isSaved(value: number): boolean {
  return value !== UNSAVED && value < READING;
}

/** Whether the chunk at `at` (bytes) of memory is all zeros. Hot path of copies. */
export function isZeroChunk(memory: Int32Array, at: number): boolean {
  const end = (at + CHUNK) >> 2;
  for (let i = at >> 2; i < end; i++) {
    if (memory[i] !== 0) return false;
  }
  return true;
}

export function runOf(value: number): number {
  return value & RUN_MASK;
}

export class ChunkTable {
  readonly #leaves: Array<Uint32Array | undefined>;

  constructor(deviceSize: number) {
    this.#leaves = Array.from({ length: Math.ceil(deviceSize / (CHUNK * LEAF)) }, () => undefined);
  }

  get(chunk: ChunkIndex): number {
    const leaf = Math.floor(chunk / LEAF);
    const values = this.#leaves[leaf];
    return values === undefined ? UNSAVED : values[chunk - leaf * LEAF]!;
  }

  set(chunk: ChunkIndex, value: number): void {
    const leaf = Math.floor(chunk / LEAF);
    let values = this.#leaves[leaf];
    if (values === undefined) values = this.#leaves[leaf] = new Uint32Array(LEAF);
    else if (values === ZEROS || values === GONES) values = this.#leaves[leaf] = values.slice();
    values[chunk - leaf * LEAF] = value;
  }

  /** The chunk to look at after a saved one: neighbourhoods that are saved throughout, as those of holes are, are
   *  passed at once, so that a discard of terabytes does not hold up the thread. */
  after(saved: ChunkIndex): ChunkIndex {
    const leaf = Math.floor(saved / LEAF);
    const values = this.#leaves[leaf];
    return (values === ZEROS || values === GONES ? (leaf + 1) * LEAF : saved + 1) as ChunkIndex;
  }

  /** Sets a whole neighbourhood to ZERO where `first` begins one before `end` that nothing was set in.
   *  The number of chunks set: all of it, or none. */
  zeroEmpty(first: ChunkIndex, end: number): number {
    const leaf = first / LEAF;
    if (first + LEAF > end || !Number.isInteger(leaf) || this.#leaves[leaf] !== undefined) return 0;
    this.#leaves[leaf] = ZEROS;
    return LEAF;
  }

  /** Sets a whole neighbourhood to GONE where `first` begins one before `end` in which nothing is stored or on its
   *  way. The number of chunks set: all of it, or none. */
  loseUnstored(first: ChunkIndex, end: number): number {
    const leaf = first / LEAF;
    if (first + LEAF > end || !Number.isInteger(leaf)) return 0;
    const values = this.#leaves[leaf];
    const stored = (value: number): boolean => value >= FIRST_POSITION && value !== GONE;
    if (values !== undefined && values !== ZEROS && values !== GONES && values.some(stored)) return 0;
    this.#leaves[leaf] = GONES;
    return LEAF;
  }

  /** Gives up the memory of the chunk's neighbourhood when all of it is gone. */
  share(chunk: ChunkIndex): void {
    const leaf = Math.floor(chunk / LEAF);
    if (this.#leaves[leaf]?.every((value) => value === GONE) === true) this.#leaves[leaf] = GONES;
  }

  /** Every chunk with a value, ascending, but for neighbourhoods of nothing but zeros, or gone. Slow path. */
  *entries(): Generator<{ chunk: ChunkIndex; value: number }> {
    for (const [leaf, values] of this.#leaves.entries()) {
      if (values === undefined || values === ZEROS || values === GONES) continue;
      for (const [i, value] of values.entries()) {
        if (value !== UNSAVED) yield { chunk: (leaf * LEAF + i) as ChunkIndex, value };
      }
    }
  }
}
