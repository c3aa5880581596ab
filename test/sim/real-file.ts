/** A real file under the simulated reactor: its data is the kernel's, its times and faults are the simulator's. */

import fs from 'node:fs';
import { ALLOCATE_PUNCH_HOLE, ALLOCATE_ZERO_RANGE } from '../../src/io/reactor.ts';
import { fallocate } from '../../src/io/sys.ts';
import type { SimFile } from './reactor.ts';

class RealFile implements SimFile {
  readonly place = 'backup';
  readonly faults = { read: 0, write: 0, sync: 0, allocate: 0 };
  readonly #fd: number;

  constructor(fd: number) {
    this.#fd = fd;
  }

  get size(): number {
    return fs.fstatSync(this.#fd).size;
  }

  read(offset: number, into: Uint8Array): void {
    fs.readSync(this.#fd, into, 0, into.length, offset);
  }

  write(offset: number, from: Uint8Array): number {
    if (from.length === 0) return 0;
    try {
      return fs.writeSync(this.#fd, from, 0, from.length, offset);
    } catch {
      // The process has just died, or the real place is full.
      return 0;
    }
  }

  clear(offset: number, length: number, punch: boolean): void {
    fallocate(this.#fd, punch ? ALLOCATE_PUNCH_HOLE : ALLOCATE_ZERO_RANGE, offset, length);
  }

  reserve(): boolean {
    return true;
  }

  /** Whoever watches the directory hears of it. */
  sync(): void {
    try {
      fs.fsyncSync(this.#fd);
    } catch {
      // The process has just died: nobody hears that this did not happen.
    }
  }

  syncRange(): void {
    this.sync();
  }

  loseUnsynced(): void {}

  readonly writtenBack = false;
  doom(): void {}
  failWriteback(): void {}
  tellWriteback(): boolean {
    return false;
  }

  isBad(): boolean {
    return false;
  }
}

/** Null when the descriptor is of none. */
export function realFile(fd: number): RealFile | null {
  try {
    return fs.fstatSync(fd).isFile() ? new RealFile(fd) : null;
  } catch {
    return null;
  }
}
