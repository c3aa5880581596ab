/** The diff areas of one origin, oldest first, and which of them receives copies.
 *
 *  Of each chunk the first area from a snapshot's own on that has saved it holds what its image shows; the origin,
 *  when none has. A destroyed area stays while an older image reads through it.
 *
 *  Does no I/O, and breaks nothing: that is for copy-on-write to do. Hot: savedLater, lookUp. */

import { CHUNK, chunkOf, isSaved } from './chunk-table.ts';
import type { ChunkIndex } from './chunk-table.ts';
import type { DiffArea } from './diff-area.ts';

export class AreaList {
  #all: DiffArea[] = [];
  /** The newest area that takes copies, and its place in #all. */
  #live: DiffArea | null = null;
  #liveIndex = -1;
  /** One more whenever another area is live: what writes found to be safe in the one before says nothing then. */
  #era = 0;

  get era(): number {
    return this.#era;
  }

  get all(): readonly DiffArea[] {
    return this.#all;
  }

  get live(): DiffArea | null {
    return this.#live;
  }

  get liveIsNewest(): boolean {
    return this.#liveIndex === this.#all.length - 1;
  }

  add(area: DiffArea): void {
    this.#all.push(area);
    this.findLive();
  }

  /** The snapshot of `area` is gone. Returns the areas that nobody needs any more. */
  remove(area: DiffArea): DiffArea[] {
    area.alive = false;
    const index = this.indexOf(area);
    // A persistent one has all of its own.
    const needs = (other: DiffArea): boolean => other.active && other.journal === null;
    const older = this.#all.findLastIndex((other, i) => i < index && needs(other));
    if (older >= 0) area.discard((chunk) => this.#unsavedBetween(older, index, chunk));
    const useless = this.#all.filter((other, i) => !other.alive && !this.#all.some((user, j) => j < i && needs(user)));
    this.#all = this.#all.filter((other) => !useless.includes(other));
    this.findLive();
    return useless;
  }

  /** To be called when an area was broken. */
  findLive(): void {
    this.#liveIndex = this.#all.findLastIndex((area) => area.active);
    const live = this.#all[this.#liveIndex] ?? null;
    if (live !== this.#live) this.#era++;
    this.#live = live;
  }

  indexOf(area: DiffArea): number {
    return this.#all.indexOf(area);
  }

  /** The first area from `from` on that has saved the chunk, or null when the origin still has it. */
  lookUp(from: number, chunk: ChunkIndex): DiffArea | null {
    for (let i = from; i < this.#all.length; i++) {
      const area = this.#all[i]!;
      if (isSaved(area.table.get(chunk))) return area;
    }
    return null;
  }

  /** Whether an area that takes no copies any more, but is newer than the live one, has saved the chunk. */
  savedLater(chunk: ChunkIndex): boolean {
    return this.lookUp(this.#liveIndex + 1, chunk) !== null;
  }

  /** Those that take copies, up to this one. */
  activeUpTo(area: DiffArea): DiffArea[] {
    return this.#all.slice(0, this.indexOf(area) + 1).filter((other) => other.active);
  }

  /** Frees what is saved of a range for nobody but the image of `area`, and has it saved no more. What older images read
   *  through this area stays, and so do chunks on their way. The number of chunks. Slow path. */
  release(area: DiffArea, offset: number, length: number): number {
    const index = this.indexOf(area);
    // What outlives the process is kept as a whole.
    if (index < 0 || !area.active || area.journal !== null) return 0;
    area.released = true;
    const older = this.#all.findLastIndex((other, i) => i < index && other.active);
    const first = chunkOf(offset + CHUNK - 1);
    const end = offset + length >= area.size ? area.lastChunk + 1 : chunkOf(offset + length);
    const needed = older < 0 ? null : (chunk: ChunkIndex): boolean => this.#unsavedBetween(older, index, chunk);
    return area.lose(first, end, needed);
  }

  #unsavedBetween(from: number, to: number, chunk: ChunkIndex): boolean {
    for (let i = from; i < to; i++) {
      if (isSaved(this.#all[i]!.table.get(chunk))) return false;
    }
    return true;
  }

  /** Whether the image of `area` depends on any of the origin's data from `offset` on. */
  readsOrigin(area: DiffArea, offset: number): boolean {
    const index = this.indexOf(area);
    for (let chunk = chunkOf(offset); chunk <= area.lastChunk; chunk++) {
      if (this.lookUp(index, chunk) === null) return true;
    }
    return false;
  }
}
