/** The file of an image that is being written: clusters are handed out one after the other, and written
 *  and checksummed in that order, each byte once.
 *
 *  The first cluster (the header) is left out and comes last: a file without it is no image, so a
 *  crash leaves nothing that looks complete. The first failure is kept; nothing succeeds after it. */

import fs from 'node:fs';
import { assert } from '../util/assert.ts';
import { CHECKSUM_RANGE_BYTES, RangeChecksums } from '../util/checksum.ts';
import { errnoError, toBlksnapError } from '../util/errors.ts';
import type { BlksnapError } from '../util/errors.ts';
import { alignUp, MIB } from '../util/units.ts';
import { borrow, readWhole, writeWhole } from '../io/files.ts';
import { completed } from '../io/reactor.ts';
import type { Reactor } from '../io/reactor.ts';

/** Written back at a time. */
const WRITEBACK_BYTES = 8 * MIB;

export interface FileChecksums {
  readonly rangeBytes: number;
  /** For each range of the file, xxHash64 as 16 hexadecimal digits; the last may be short. */
  readonly checksums: string[];
}

/** Memory that is, or will be, written to the file. */
interface Run {
  readonly at: number;
  readonly offset: number;
  length: number;
}

export class FileLog {
  readonly path: string;
  readonly #reactor: Reactor;
  readonly #fd: number;
  readonly #clusterSize: number;
  readonly #sums = new RangeChecksums();
  #end: number;
  #underWay = 0;
  /** Where the part of the file ends that is being written back. */
  #writtenBack = 0;
  /** The last run, as long as it can grow. */
  #gathered: (Run & { readonly written: Promise<void> }) | null = null;
  #idle: Array<() => void> = [];
  #failure: BlksnapError | null = null;

  /** Creates the file. Errors: EEXIST when there is one. */
  constructor(reactor: Reactor, path: string, clusterSize: number) {
    this.path = path;
    this.#reactor = reactor;
    this.#clusterSize = clusterSize;
    this.#end = clusterSize;
    try {
      this.#fd = fs.openSync(path, fs.constants.O_RDWR | fs.constants.O_CREAT | fs.constants.O_EXCL, 0o600);
    } catch (cause) {
      throw toBlksnapError(cause, `Cannot create "${path}"`);
    }
    this.#sums.updateZeroes(clusterSize);
  }

  /** Where the next cluster will be; at the end, the file's length. */
  get end(): number {
    return this.#end;
  }

  /** Makes everything from now on fail with `cause`. */
  fail(cause: unknown): void {
    this.#failure ??= toBlksnapError(cause);
  }

  checkFailure(): void {
    if (this.#failure !== null) throw this.#failure;
  }

  /** Writes arena memory to the next clusters; the rest of the last one stays zero. Their place is `end`
   *  as of the call. What neighbours in memory as well goes in one write. */
  append(at: number, length: number): Promise<void> {
    if (this.#failure !== null) return Promise.reject(this.#failure);
    const offset = this.#end;
    this.#end += alignUp(length, this.#clusterSize);
    const last = this.#gathered;
    if (last !== null && last.at + last.length === at && last.offset + last.length === offset) {
      last.length += length;
      return last.written;
    }
    const run = { at, offset, length };
    // When all that is ready has been appended.
    const written = Promise.resolve().then(() => this.#write(run));
    this.#gathered = Object.assign(run, { written });
    this.#underWay++;
    return written;
  }

  async #write(run: Run): Promise<void> {
    if (this.#gathered === run) this.#gathered = null;
    const { at, offset, length } = run;
    try {
      const writing = writeWhole(this.#reactor, { fd: this.#fd, path: this.path }, at, length, offset);
      this.#sums.update(this.#reactor.arena.bytes.subarray(at, at + length));
      this.#sums.updateZeroes(alignUp(length, this.#clusterSize) - length);
      await writing;
      this.#beginWriteback(offset + length);
    } catch (cause) {
      this.fail(cause);
      throw cause;
    } finally {
      this.#ended();
    }
  }

  /** What is written goes to the disk beside the next writes, not all of it in the sync at the end, which tells what failed. */
  #beginWriteback(end: number): void {
    if (end - this.#writtenBack < WRITEBACK_BYTES) return;
    // Once more for what was on its way when it was begun before.
    const from = Math.max(0, this.#writtenBack - WRITEBACK_BYTES);
    this.#writtenBack = end;
    this.#underWay++;
    void completed((c) => this.#reactor.beginWriteback(this.#fd, from, end - from, c)).then(() => this.#ended());
  }

  #ended(): void {
    this.#underWay--;
    if (this.#underWay === 0) this.#wakeIdle();
  }

  async whenIdle(): Promise<void> {
    while (this.#underWay > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
  }

  /** Makes all that was appended, in whole clusters at the end, durable, and then the header. Resolves with the file's checksums. */
  async complete(header: Uint8Array): Promise<FileChecksums> {
    await this.whenIdle();
    this.checkFailure();
    assert(header.length <= this.#clusterSize, 'the header fits the first cluster');
    const { arena } = this.#reactor;
    const firstRange = Math.min(CHECKSUM_RANGE_BYTES, this.#end);
    const piece = Math.min(firstRange, 2 ** 20, arena.largest);
    const file = { fd: this.#fd, path: this.path };
    await this.#sync();
    const at = await borrow(arena, piece);
    try {
      arena.bytes.set(header, at);
      await writeWhole(this.#reactor, file, at, header.length, 0);
      await this.#sync();
      const first = new RangeChecksums();
      for (let offset = 0; offset < firstRange; offset += piece) {
        const count = await readWhole(this.#reactor, file, at, Math.min(piece, firstRange - offset), offset);
        first.update(arena.bytes.subarray(at, at + count));
      }
      const checksums = this.#sums.finish();
      checksums[0] = first.finish()[0]!;
      return { rangeBytes: CHECKSUM_RANGE_BYTES, checksums };
    } finally {
      arena.release(at);
    }
  }

  /** Closes the file; no write may be under way. */
  close(): void {
    assert(this.#underWay === 0, 'the file is closed when it is idle');
    fs.closeSync(this.#fd);
  }

  async #sync(): Promise<void> {
    const result = await completed((c) => this.#reactor.sync(this.#fd, c));
    if (result < 0) throw errnoError(-result, `Cannot sync "${this.path}"`);
  }

  #wakeIdle(): void {
    const idle = this.#idle;
    this.#idle = [];
    for (const resolve of idle) resolve();
  }
}
