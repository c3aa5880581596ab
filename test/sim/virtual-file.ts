/** A file of the simulator: what the page cache shows, and what is on the platter.
 *
 *  Pages that were never written, or were punched, are holes. What was written since the last sync is kept as
 *  a log by sectors: at a power loss each sector of it may have reached the platter or not, in every version that it
 *  had. A sync that fails drops what it could not write, and the next one succeeds without it, as Linux does.
 *
 *  What is cached may also fail later, when the kernel writes it back: then it is as it was on the platter, and each
 *  descriptor that was open, or the first that is opened, is told of it once. */

import { openSync } from 'node:fs';
import type { HoleFinder } from '../../src/block/device.ts';
import type { Prng } from '../../src/util/prng.ts';
import type { SimFile } from './reactor.ts';

const PAGE = 4096;
const SECTOR = 512;

interface Unsynced {
  readonly sector: number;
  readonly bytes: Uint8Array;
}

export interface VirtualFileOptions {
  readonly name: string;
  readonly size: number;
  /** Pages that the place can hold; what is more ends with ENOSPC. */
  readonly capacityPages?: number;
  /** Whether it is an origin, whose data must outlive a power loss. */
  readonly kept?: boolean;
  /** Whether it is another file that a power loss does not take. */
  readonly logged?: boolean;
  /** Whether what is written waits in the page cache, and may fail there. */
  readonly writtenBack?: boolean;
}

export class VirtualFile implements HoleFinder, SimFile {
  readonly name: string;
  readonly place: 'origin' | 'storage';
  readonly #logged: boolean;
  readonly writtenBack: boolean;
  readonly tellsTime: boolean;
  size: number;
  capacityPages: number;
  /** Faults that were injected into operations on this file. */
  readonly faults = { read: 0, write: 0, sync: 0, allocate: 0 };
  /** Of them, syncs before the power was lost last. */
  syncFaultsAtBoot = 0;
  /** Sectors that cannot be read until they are written. */
  readonly #bad = new Set<number>();
  #pages = new Map<number, Uint8Array>();
  readonly #platter = new Map<number, Uint8Array>();
  readonly #unsynced: Unsynced[] = [];
  /** Pages that the device will fail to take. */
  readonly #doomed = new Set<number>();
  /** How often that has happened, how often somebody was told, and how often each descriptor was. */
  #writebackFailures = 0;
  #toldFailures = 0;
  readonly #toldOf = new Map<number, number>();

  constructor(options: VirtualFileOptions) {
    const { name, size, capacityPages = Infinity, kept = false, logged = kept, writtenBack = false } = options;
    this.name = name;
    this.size = size;
    this.capacityPages = capacityPages;
    this.place = kept ? 'origin' : 'storage';
    this.#logged = logged;
    this.writtenBack = writtenBack;
    this.tellsTime = name === 'journal';
  }

  /** A number for the file. It is a real descriptor of nothing, so that whoever has to close it can. */
  open(): number {
    const fd = openSync('/dev/null', 'r+');
    this.#toldOf.set(fd, this.#toldFailures);
    return fd;
  }

  /** Pages that are no holes. */
  get pages(): number {
    return this.#pages.size;
  }

  // --- the page cache -------------------------------------------------------------------------

  read(offset: number, into: Uint8Array): void {
    for (let done = 0; done < into.length;) {
      const inPage = (offset + done) % PAGE;
      const count = Math.min(PAGE - inPage, into.length - done);
      const page = this.#pages.get(Math.floor((offset + done) / PAGE));
      if (page === undefined) into.fill(0, done, done + count);
      else into.set(page.subarray(inPage, inPage + count), done);
      done += count;
    }
  }

  /** Sectors of the range go bad. */
  spoil(offset: number, length: number): void {
    for (let sector = Math.floor(offset / SECTOR); sector * SECTOR < offset + length; sector++) this.#bad.add(sector);
  }

  isBad(offset: number, length: number): boolean {
    for (const sector of this.#bad)
      if (sector * SECTOR < offset + length && (sector + 1) * SECTOR > offset) return true;
    return false;
  }

  #heal(offset: number, length: number): void {
    for (const sector of this.#bad)
      if (sector * SECTOR >= offset && (sector + 1) * SECTOR <= offset + length) this.#bad.delete(sector);
  }

  /** The count written: less than there is when the place is full. */
  write(offset: number, from: Uint8Array): number {
    let done = 0;
    while (done < from.length) {
      const index = Math.floor((offset + done) / PAGE);
      const inPage = (offset + done) % PAGE;
      const count = Math.min(PAGE - inPage, from.length - done);
      const page = this.#pages.get(index) ?? this.#newPage(index);
      if (page === null) break;
      page.set(from.subarray(done, done + count), inPage);
      done += count;
    }
    this.size = Math.max(this.size, offset + done);
    this.#heal(offset, done);
    this.#log(offset, done);
    return done;
  }

  #newPage(index: number): Uint8Array | null {
    if (this.#pages.size >= this.capacityPages) return null;
    const page = new Uint8Array(PAGE);
    this.#pages.set(index, page);
    return page;
  }

  /** Zeros, and holes where whole pages are punched. */
  clear(offset: number, length: number, punch: boolean): void {
    const end = Math.min(offset + length, this.size);
    for (let from = offset; from < end;) {
      const index = Math.floor(from / PAGE);
      const to = Math.min((index + 1) * PAGE, end);
      if (punch && to - from === PAGE) this.#pages.delete(index);
      else this.#pages.get(index)?.fill(0, from - index * PAGE, to - index * PAGE);
      from = to;
    }
    this.#log(offset, end - offset);
  }

  /** Whether the place has room for the range. */
  reserve(offset: number, length: number): boolean {
    let wanted = 0;
    for (let index = Math.floor(offset / PAGE); index * PAGE < offset + length; index++) {
      if (!this.#pages.has(index)) wanted++;
    }
    if (this.#pages.size + wanted > this.capacityPages) return false;
    this.size = Math.max(this.size, offset + length);
    return true;
  }

  resize(size: number): void {
    if (size < this.size) {
      const tail = Math.ceil(size / PAGE);
      for (const index of this.#pages.keys()) if (index >= tail) this.#pages.delete(index);
      this.#pages.get(tail - 1)?.fill(0, size - (tail - 1) * PAGE);
    }
    this.size = size;
    this.#platter.clear();
    for (const [index, page] of this.#pages) this.#platter.set(index, page.slice());
    this.#unsynced.length = 0;
  }

  // --- the platter ----------------------------------------------------------------------------

  #log(offset: number, length: number): void {
    if (!this.#logged || length <= 0) return;
    const last = Math.floor((offset + length - 1) / SECTOR);
    for (let sector = Math.floor(offset / SECTOR); sector <= last; sector++) {
      const bytes = new Uint8Array(SECTOR);
      this.read(sector * SECTOR, bytes);
      this.#unsynced.push({ sector, bytes });
    }
  }

  #land({ sector, bytes }: Unsynced): void {
    const index = Math.floor((sector * SECTOR) / PAGE);
    let page = this.#platter.get(index);
    if (page === undefined) this.#platter.set(index, (page = new Uint8Array(PAGE)));
    page.set(bytes, (sector * SECTOR) % PAGE);
  }

  sync(): void {
    this.failWriteback();
    for (const each of this.#unsynced) this.#land(each);
    this.#unsynced.length = 0;
  }

  /** A write that went through to the platter. */
  syncRange(offset: number, length: number): void {
    const inside = ({ sector }: Unsynced): boolean =>
      (sector + 1) * SECTOR > offset && sector * SECTOR < offset + length;
    const rest = this.#unsynced.filter((each) => !inside(each));
    for (const each of this.#unsynced) if (inside(each)) this.#land(each);
    this.#unsynced.splice(0, this.#unsynced.length, ...rest);
  }

  /** A sync that failed: some of it is on the platter, and the rest is forgotten. */
  loseUnsynced(random: Prng): void {
    const share = random.below(100) / 100;
    for (const each of this.#unsynced) if (random.chance(share)) this.#land(each);
    this.#unsynced.length = 0;
  }

  /** The page cache is gone; of what was not synced, some had landed. */
  losePower(random: Prng): void {
    this.loseUnsynced(random);
    this.#pages = new Map([...this.#platter].map(([index, page]) => [index, page.slice()]));
    this.syncFaultsAtBoot = this.faults.sync;
  }

  // --- write-back -----------------------------------------------------------------------------

  /** What was just written will be lost when it is written back. */
  doom(offset: number, length: number): void {
    for (let page = Math.floor(offset / PAGE); page * PAGE < offset + length; page++) this.#doomed.add(page);
  }

  /** The kernel writes back what is doomed, and the device fails. */
  failWriteback(): void {
    if (this.#doomed.size === 0) return;
    const rest = this.#unsynced.filter(({ sector }) => !this.#doomed.has(Math.floor((sector * SECTOR) / PAGE)));
    this.#unsynced.splice(0, this.#unsynced.length, ...rest);
    for (const index of this.#doomed) {
      const page = this.#platter.get(index);
      if (page === undefined) this.#pages.delete(index);
      else this.#pages.set(index, page.slice());
    }
    this.#doomed.clear();
    this.#writebackFailures++;
  }

  /** Whether it failed since the descriptor was told, or before anybody was. */
  tellWriteback(fd: number): boolean {
    if (this.#toldOf.get(fd) === this.#writebackFailures) return false;
    this.#toldOf.set(fd, this.#writebackFailures);
    this.#toldFailures = this.#writebackFailures;
    return true;
  }

  // --- holes ----------------------------------------------------------------------------------

  dataFrom(offset: number, end: number): number {
    for (let at = offset; at < end; at = (Math.floor(at / PAGE) + 1) * PAGE) {
      if (this.#pages.has(Math.floor(at / PAGE))) return at;
    }
    return end;
  }

  dataUntil(offset: number, end: number): number {
    for (let at = offset; at < end; at = (Math.floor(at / PAGE) + 1) * PAGE) {
      if (!this.#pages.has(Math.floor(at / PAGE))) return at;
    }
    return end;
  }
}
