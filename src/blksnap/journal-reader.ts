/** Reads the journal of a persistent snapshot: to its last whole frame, in bounded memory. Believes nothing: whatever
 *  does not fit the plan, or the disk that it is of, is an error.
 *
 *  Twice: first for the notes, the maps and how far each piece of storage is filled, then for the rows. */

import { borrow, readWhole } from '../io/files.ts';
import type { Reactor } from '../io/reactor.ts';
import { BlksnapError } from '../util/errors.ts';
import { CHUNK, MAX_POSITION } from './chunk-table.ts';
import {
  FRAME_HEADER,
  KIND_MAP,
  KIND_NOTE,
  KIND_ROWS,
  MAX_PAYLOAD,
  ROW_BYTES,
  ROW_STORED,
  frameBytes,
  openFrame,
  parseNote,
  readRow,
} from './journal-format.ts';
import type { Note, PlaceNote, PlanNote, Row, TakenNote } from './journal-format.ts';
import type { JournalPlace } from './journal-place.ts';
import { LABEL_CHUNKS } from './storage-label.ts';

const BUFFER_BYTES = 4 * MAX_PAYLOAD;

export interface JournalContent {
  /** Whole frames, and where they end. */
  readonly frames: number;
  readonly offset: number;
  readonly plan: PlanNote;
  /** Null: the take did not come to its end. */
  readonly taken: TakenNote | null;
  readonly places: readonly PlaceNote[];
  /** Chunks of each piece that are in use. */
  readonly used: readonly number[];
  /** Of each disk: its frozen change map, and what was marked dirty since. */
  readonly maps: readonly Uint8Array[];
  /** Of disks whose image was lost: why (an errno). */
  readonly broken: ReadonlyMap<number, number>;
}

/** Errors: EBADMSG; what reading fails with. */
export async function readJournal(reactor: Reactor, place: JournalPlace): Promise<JournalContent> {
  const reading = new Reading(place.path);
  const end = await eachFrame(reactor, place, (kind, payload) => reading.take(kind, payload));
  return reading.content(end);
}

/** Every row, in the order in which they were recorded. */
export async function eachRow(reactor: Reactor, place: JournalPlace, use: (row: Row) => void): Promise<void> {
  await eachFrame(reactor, place, (kind, payload) => {
    if (kind === KIND_ROWS) for (const row of rowsOf(payload, place.path)) use(row);
  });
}

async function eachFrame(
  reactor: Reactor,
  place: JournalPlace,
  use: (kind: number, payload: Uint8Array) => void,
): Promise<{ frames: number; offset: number }> {
  const at = await borrow(reactor.arena, BUFFER_BYTES);
  const memory = new DataView(reactor.arena.bytes.buffer, reactor.arena.bytes.byteOffset + at, BUFFER_BYTES);
  let frames = 0;
  let offset = 0;
  try {
    for (;;) {
      const got = await readWhole(reactor, place, at, BUFFER_BYTES, offset);
      let from = 0;
      for (;;) {
        const length = got - from < FRAME_HEADER ? 0 : frameBytes(memory, from, frames + 1);
        const frame = length === 0 || from + length > got ? null : openFrame(memory, from, length);
        if (frame === null) break;
        use(frame.kind, frame.payload);
        frames++;
        from += length;
      }
      if (from === 0) return { frames, offset };
      offset += from;
    }
  } finally {
    reactor.arena.release(at);
  }
}

function rowsOf(payload: Uint8Array, path: string): Row[] {
  const memory = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
  const rows: Row[] = [];
  for (let at = 0; at < payload.byteLength; at += ROW_BYTES) {
    const row = payload.byteLength - at < ROW_BYTES ? null : readRow(memory, at);
    if (row === null) throw unusable(path, 'it has a row of no known kind');
    rows.push(row);
  }
  return rows;
}

function unusable(path: string, why: string): BlksnapError {
  return new BlksnapError('EBADMSG', `Cannot use journal "${path}": ${why}`);
}

/** What was read so far. */
class Reading {
  readonly #path: string;
  #plan: PlanNote | null = null;
  #taken: TakenNote | null = null;
  readonly #places: PlaceNote[] = [];
  readonly #used: number[] = [];
  readonly #maps: Uint8Array[][] = [];
  readonly #dirty: Array<{ readonly disk: number; readonly offset: number; readonly length: number }> = [];
  readonly #broken = new Map<number, number>();

  constructor(path: string) {
    this.#path = path;
  }

  take(kind: number, payload: Uint8Array): void {
    switch (kind) {
      case KIND_NOTE: {
        const note = parseNote(payload);
        if (note === null) throw unusable(this.#path, 'it has a note that cannot be understood');
        this.#note(note);
        return;
      }
      case KIND_MAP:
        this.#map(payload);
        return;
      case KIND_ROWS:
        for (const row of rowsOf(payload, this.#path)) this.#row(row);
        return;
      default:
        throw unusable(this.#path, `it has a frame of kind ${kind}`);
    }
  }

  #planned(): PlanNote {
    if (this.#plan === null) throw unusable(this.#path, 'it does not begin with a plan');
    return this.#plan;
  }

  #disk(disk: number): PlanNote['disks'][number] {
    const found = this.#planned().disks[disk];
    if (found === undefined)
      throw unusable(this.#path, `it tells of disk ${disk}, and has ${this.#plan!.disks.length}`);
    return found;
  }

  #note(note: Note): void {
    if ('plan' in note) {
      if (this.#plan !== null) throw unusable(this.#path, 'it has two plans');
      this.#plan = note.plan;
      this.#maps.push(...note.plan.disks.map(() => []));
      this.#addPlace(note.plan.place);
      return;
    }
    this.#planned();
    if ('taken' in note) this.#taken = note.taken;
    else if ('place' in note) this.#addPlace(note.place);
    else if ('limitBytes' in note) this.#places.push({ ...this.#places.pop()!, limitBytes: note.limitBytes });
    else if ('dirty' in note) this.#dirty.push(note.dirty);
    else this.#broken.set(note.broken.disk, note.broken.errno);
  }

  #addPlace(place: PlaceNote): void {
    this.#places.push(place);
    this.#used.push(LABEL_CHUNKS);
  }

  /** Parts come in their order. */
  #map(payload: Uint8Array): void {
    const header = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
    const disk = payload.byteLength < 8 ? -1 : header.getUint32(0, true);
    this.#disk(disk);
    const parts = this.#maps[disk]!;
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    if (header.getUint32(4, true) !== length) throw unusable(this.#path, 'a part of a change map is missing');
    parts.push(payload.slice(8));
  }

  #row({ type, disk, chunk, count, piece, position }: Row): void {
    const chunks = Math.ceil(this.#disk(disk).size / CHUNK);
    if (count === 0 || chunk + count > chunks)
      throw unusable(this.#path, `it tells of ${count} chunks from ${chunk} on, and the disk has ${chunks}`);
    if (type !== ROW_STORED) return;
    const used = this.#used[piece];
    if (used === undefined || position < LABEL_CHUNKS || position + count > MAX_POSITION)
      throw unusable(this.#path, `it tells of a chunk at ${position} of place ${piece}`);
    this.#used[piece] = Math.max(used, position + count);
  }

  content({ frames, offset }: { readonly frames: number; readonly offset: number }): JournalContent {
    const plan = this.#planned();
    const maps = plan.disks.map(({ size, blockSize }, disk) => {
      const map = Buffer.concat(this.#maps[disk]!);
      if (this.#taken !== null && map.length !== Math.ceil(size / blockSize))
        throw unusable(this.#path, `a change map has ${map.length} bytes, want ${Math.ceil(size / blockSize)}`);
      return new Uint8Array(map);
    });
    if (this.#taken !== null && this.#taken.disks.length !== plan.disks.length)
      throw unusable(this.#path, 'its disks are others than those of its plan');
    this.#markDirty(plan, maps);
    const [taken, places, used, broken] = [this.#taken, this.#places, this.#used, this.#broken];
    return { frames, offset, plan, taken, places, used, maps, broken };
  }

  #markDirty({ disks }: PlanNote, maps: readonly Uint8Array[]): void {
    for (const { disk, offset, length } of this.#dirty) {
      const { blockSize } = this.#disk(disk);
      const number = this.#taken?.disks[disk]?.changeNumber;
      if (number === undefined || disks[disk]!.size <= offset) continue;
      maps[disk]!.fill(number, Math.floor(offset / blockSize), Math.floor((offset + length - 1) / blockSize) + 1);
    }
  }
}
