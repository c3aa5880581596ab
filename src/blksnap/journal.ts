/** Writes the journal of a persistent snapshot: what is recorded here is there for the next process (journal-format.ts).
 *
 *  One write at a time; what comes meanwhile goes out together with the next. A record counts once its frame is written:
 *  from then on it outlives the process, and, after `sync`, the machine. Never fails an origin: after the first
 *  error nothing is recorded any more, and whoever asks is told so.
 *
 *  Hot path: record, flush. */

import { NO_MEMORY } from '../io/arena.ts';
import { borrow } from '../io/files.ts';
import { completed } from '../io/reactor.ts';
import type { Completion, Reactor } from '../io/reactor.ts';
import { BlksnapError, ERRNO, codeOfErrno } from '../util/errors.ts';
import { KIB } from '../util/units.ts';
import { FRAME_HEADER, KIND_MAP, KIND_NOTE, KIND_ROWS, ROW_BYTES, putRow, sealFrame } from './journal-format.ts';
import type { Note, Row } from './journal-format.ts';
import type { JournalPlace } from './journal-place.ts';

/** Rows are gathered in one half while the other is being written. */
const HALF_BYTES = 32 * KIB;
const MAP_PART_BYTES = 64 * KIB;

/** Who has something to record. */
export interface Recorded {
  /** The most rows that it may put. */
  readonly maxRows: number;
  /** Passes its rows on. */
  putRows(journal: Journal): void;
  /** The rows are recorded, or with an errno they are not. */
  recorded(status: number): void;
}

/** Something larger than a few rows, in memory of its own. */
interface Slow {
  readonly kind: number;
  readonly at: number;
  readonly payloadBytes: number;
  readonly done: (status: number) => void;
}

export class Journal implements Completion {
  readonly place: JournalPlace;
  /** Hears how many whole frames there are, before anybody hears that its rows are recorded. */
  onFrames: (frames: number) => void = () => {};
  /** Hears, once, that nothing can be recorded any more. */
  onFailed: (errno: number) => void = () => {};
  readonly #reactor: Reactor;
  readonly #memory: DataView<ArrayBuffer>;
  readonly #at: number;
  #frames: number;
  #offset: number;
  #half = 0;
  #staged = 0;
  #stagedFor: Recorded[] = [];
  #writingFor: Recorded[] = [];
  /** Those for whom the half had no room. */
  readonly #queue: Recorded[] = [];
  readonly #slow: Slow[] = [];
  #writing: Slow | 'rows' | null = null;
  #from = 0;
  #left = 0;
  #failed = 0;
  #refusing = false;
  #closed = false;
  readonly #onRefuse = { complete: (): void => this.#refuseAll() };

  /** `frames` that end at `offset` are there already. Errors: ENOMEM. */
  constructor(reactor: Reactor, place: JournalPlace, there: { readonly frames: number; readonly offset: number }) {
    this.place = place;
    this.#reactor = reactor;
    this.#memory = reactor.arena.view;
    this.#frames = there.frames;
    this.#offset = there.offset;
    this.#at = reactor.arena.allocate(2 * HALF_BYTES);
    if (this.#at !== NO_MEMORY) return;
    throw new BlksnapError('ENOMEM', 'Cannot keep a journal: the arena is full; try again, or give more with --arena');
  }

  /** Whole frames that are written. */
  get frames(): number {
    return this.#frames;
  }

  get idle(): boolean {
    const waiting = this.#stagedFor.length + this.#slow.length + this.#queue.length;
    return this.#writing === null && waiting === 0 && !this.#refusing;
  }

  // --- rows -----------------------------------------------------------------------------------

  /** Records rows with the next write. `who` hears of it later, never before this returns. */
  record(who: Recorded): void {
    if (this.#queue.length > 0 || !this.#stage(who)) this.#queue.push(who);
    if (this.#failed !== 0) this.#refuseSoon();
  }

  #stage(who: Recorded): boolean {
    if (this.#failed === 0) {
      if (FRAME_HEADER + this.#staged + who.maxRows * ROW_BYTES > HALF_BYTES) return false;
      who.putRows(this);
    }
    this.#stagedFor.push(who);
    return true;
  }

  /** For those that are asked for their rows. */
  putRow(row: Row): void {
    putRow(this.#memory, this.#at + this.#half + FRAME_HEADER + this.#staged, row);
    this.#staged += ROW_BYTES;
  }

  // --- notes and maps -------------------------------------------------------------------------

  /** Waits for memory, if need be. Errors: what the file fails with. */
  async note(note: Note): Promise<void> {
    const text = Buffer.from(JSON.stringify(note));
    await this.#writeSlow(KIND_NOTE, text.length, (into) => into.set(text));
  }

  /** Writes a disk's frozen change map. Errors: as note. */
  async map(disk: number, map: Uint8Array): Promise<void> {
    for (let offset = 0; offset < map.length; offset += MAP_PART_BYTES) {
      const part = map.subarray(offset, offset + MAP_PART_BYTES);
      await this.#writeSlow(KIND_MAP, 8 + part.length, (into) => {
        const header = new DataView(into.buffer, into.byteOffset);
        header.setUint32(0, disk, true);
        header.setUint32(4, offset, true);
        into.set(part, 8);
      });
    }
  }

  async #writeSlow(kind: number, payloadBytes: number, fill: (into: Uint8Array<ArrayBuffer>) => void): Promise<void> {
    const { arena } = this.#reactor;
    const at = await borrow(arena, FRAME_HEADER + payloadBytes);
    fill(arena.bytes.subarray(at + FRAME_HEADER, at + FRAME_HEADER + payloadBytes));
    const status = await new Promise<number>((done) => {
      this.#slow.push({ kind, at, payloadBytes, done });
      this.flush();
    });
    arena.release(at);
    if (status !== 0) throw new BlksnapError(codeOfErrno(status), `Cannot write journal "${this.place.path}"`);
  }

  // --- writing --------------------------------------------------------------------------------

  /** Sends what was gathered. Called at the end of every turn. */
  flush(): void {
    if (this.#writing !== null) return;
    if (this.#failed !== 0) {
      if (!this.idle) this.#refuseSoon();
      return;
    }
    const slow = this.#slow.shift();
    if (slow !== undefined) {
      this.#writing = slow;
      this.#send(slow.at, { kind: slow.kind, payloadBytes: slow.payloadBytes });
      return;
    }
    if (this.#staged === 0) return;
    this.#writing = 'rows';
    const at = this.#at + this.#half;
    const payloadBytes = this.#staged;
    [this.#stagedFor, this.#writingFor] = [this.#writingFor, this.#stagedFor];
    this.#half = HALF_BYTES - this.#half;
    this.#staged = 0;
    this.#send(at, { kind: KIND_ROWS, payloadBytes });
    this.#unqueue();
  }

  #unqueue(): void {
    while (this.#queue.length > 0 && this.#stage(this.#queue[0]!)) this.#queue.shift();
  }

  #send(at: number, frame: { readonly kind: number; readonly payloadBytes: number }): void {
    sealFrame(this.#memory, at, { ...frame, number: this.#frames + 1 });
    this.#from = at;
    this.#left = FRAME_HEADER + frame.payloadBytes;
    this.#reactor.writeCached(this.place.fd, this.#from, this.#left, this.#offset, this);
  }

  complete(result: number): void {
    if (result > 0 && result < this.#left) {
      this.#from += result;
      this.#left -= result;
      this.#offset += result;
      this.#reactor.writeCached(this.place.fd, this.#from, this.#left, this.#offset, this);
      return;
    }
    const status = result === this.#left ? 0 : result < 0 ? -result : ERRNO.ENOSPC;
    const ended = this.#writing;
    this.#writing = null;
    if (status === 0) {
      this.#offset += result;
      this.#frames++;
      this.onFrames(this.#frames);
    } else {
      this.fail(status);
    }
    if (ended === 'rows') tell(this.#writingFor, status);
    else ended?.done(status);
    if (this.#slow.length > 0 || this.#failed !== 0) this.flush();
  }

  /** Nothing is recorded from here on. Safe to call twice. */
  fail(errno: number): void {
    if (this.#failed !== 0) return;
    this.#failed = errno;
    this.onFailed(errno);
  }

  /** In a turn of its own: whoever hears of it may start something else. */
  #refuseSoon(): void {
    if (this.#refusing) return;
    this.#refusing = true;
    this.#reactor.timer(0, this.#onRefuse);
  }

  #refuseAll(): void {
    this.#refusing = false;
    this.#staged = 0;
    this.#unqueue();
    tell(this.#stagedFor, this.#failed);
    for (const slow of this.#slow.splice(0)) slow.done(this.#failed);
  }

  // --- end ------------------------------------------------------------------------------------

  /** What is recorded outlives the machine, too. 0 or an errno. */
  async sync(): Promise<number> {
    while (!this.idle) await completed((c) => void this.#reactor.timer(1, c));
    if (this.#failed !== 0) return this.#failed;
    return -(await completed((c) => this.#reactor.sync(this.place.fd, c)));
  }

  /** Nobody records anything any more. Safe to call twice. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    while (!this.idle) await completed((c) => void this.#reactor.timer(1, c));
    this.#reactor.arena.release(this.#at);
    this.place.close();
  }
}

/** Those who hear may record again at once. */
function tell(all: Recorded[], status: number): void {
  const { length } = all;
  for (let i = 0; i < length; i++) all[i]!.recorded(status);
  all.splice(0, length);
}
