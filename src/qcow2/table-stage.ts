/** Gathers the tables of an image that is being written into large writes at the end of its file. */

import { alignUp, MIB } from '../util/units.ts';
import { borrow } from '../io/files.ts';
import type { Reactor } from '../io/reactor.ts';
import type { FileLog } from './file-log.ts';

const STAGE_BYTES = MIB;

export class TableStage {
  readonly #reactor: Reactor;
  readonly #log: FileLog;
  readonly #clusterSize: number;
  readonly #stageBytes: number;
  #at = -1;
  #used = 0;

  constructor(reactor: Reactor, log: FileLog, clusterSize: number) {
    this.#reactor = reactor;
    this.#log = log;
    this.#clusterSize = clusterSize;
    this.#stageBytes = Math.max(clusterSize, Math.min(STAGE_BYTES, reactor.arena.largest));
  }

  async open(): Promise<void> {
    this.#at = await borrow(this.#reactor.arena, this.#stageBytes);
  }

  /** Where in the file the next byte goes. */
  get end(): number {
    return this.#log.end + this.#used;
  }

  async put(view: DataView): Promise<void> {
    const bytes = new Uint8Array(view.buffer);
    for (let done = 0; done < bytes.length;) {
      const length = Math.min(bytes.length - done, this.#stageBytes - this.#used);
      this.#reactor.arena.bytes.set(bytes.subarray(done, done + length), this.#at + this.#used);
      this.#used += length;
      done += length;
      if (this.#used === this.#stageBytes) await this.flush();
    }
  }

  /** Fills up the cluster with zeroes. */
  async pad(): Promise<void> {
    const padded = alignUp(this.#used, this.#clusterSize);
    this.#reactor.arena.bytes.fill(0, this.#at + this.#used, this.#at + padded);
    this.#used = padded;
    if (this.#used === this.#stageBytes) await this.flush();
  }

  async flush(): Promise<void> {
    if (this.#used === 0) return;
    await this.#log.append(this.#at, this.#used);
    this.#used = 0;
  }

  close(): void {
    if (this.#at >= 0) this.#reactor.arena.release(this.#at);
  }
}
