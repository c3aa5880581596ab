/** A block device on a descriptor: what image files and kernel block devices have in common.
 *
 *  Hot path: reads, writes and flushes are one reactor operation each; short ones are continued.
 *  Discard punches holes. WriteZeroes tries what frees space first: punch a hole (unless NO_HOLE), zero
 *  the range, write zeros (unless FAST_ZERO); what the file system turns out not to know is not tried again.
 *
 *  After a failed sync the kernel has dropped what it could not write, and the next sync would succeed
 *  without it. So every later flush and FUA write fails until the device is opened anew. */

import fs from 'node:fs';
import { NO_MEMORY } from '../io/arena.ts';
import { ALLOCATE_PUNCH_HOLE, ALLOCATE_ZERO_RANGE } from '../io/reactor.ts';
import type { Reactor } from '../io/reactor.ts';
import { ffiAvailable } from '../io/sys.ts';
import { unreachable } from '../util/assert.ts';
import { BlksnapError, ERRNO } from '../util/errors.ts';
import { KIB } from '../util/units.ts';
import { BioQueue, DISCARD, FAST_ZERO, FLUSH, FUA, NO_HOLE, READ, WRITE, WRITE_ZEROES, rangeError } from './bio.ts';
import type { Bio, BioDriver } from './bio.ts';
import { BounceSlots } from './bounce.ts';
import type { BlockDevice, Capabilities, Extent, HoleFinder } from './device.ts';
import { FileHoles, fileExtents } from './file-extents.ts';

/** Zeros written at once where nothing faster works. */
const ZERO_BYTES = 256 * KIB;
const PAGE = 4 * KIB;

export interface DescriptorGeometry {
  readonly name: string;
  /** Closed with the device. */
  readonly fd: number;
  /** What size it has now. */
  readonly sizeNow: () => number;
  readonly logicalBlockSize: number;
  readonly physicalBlockSize: number;
  readonly readOnly: boolean;
  readonly capabilities: Capabilities;
  /** Of the data in memory, bytes: 1 unless O_DIRECT. What is not aligned goes through a bounce buffer. */
  readonly memoryAlignment: number;
  readonly kind: 'file' | 'kernel device';
  /** What normally ends in memory: everything (tmpfs), writes and reads of what is there (the page cache), or nothing (O_DIRECT). */
  readonly cached: 'all' | 'writes' | 'nothing';
}

export class DescriptorDevice implements BlockDevice {
  readonly name: string;
  readonly logicalBlockSize: number;
  readonly physicalBlockSize: number;
  readonly readOnly: boolean;
  readonly capabilities: Capabilities;
  readonly holes?: HoleFinder;
  readonly #fd: number;
  #size: number;
  readonly #sizeNow: () => number;
  readonly #kind: DescriptorGeometry['kind'];
  readonly #cached: DescriptorGeometry['cached'];
  readonly #reactor: Reactor;
  readonly #memoryAlignment: number;
  readonly #bounce: BounceSlots | null;
  /** Reads of what the page cache holds may be done at once. */
  #asksCache: boolean;
  #canPunch: boolean;
  #canZeroRange = true;
  onLost: () => void = () => {};
  /** errno of the sync that failed, or 0. */
  #lost = 0;
  #zerosAt = NO_MEMORY;
  readonly #zeroBytes: number;
  readonly #wantZeros = new BioQueue();
  #closed = false;

  // Each step of a bio has its driver: the step that is under way is who hears the result.
  readonly #transferring: BioDriver = { bioProgress: (bio, result) => this.#transferred(bio, result) };
  readonly #syncing: BioDriver = { bioProgress: (bio, result) => this.#synced(bio, result) };
  readonly #discarding: BioDriver = { bioProgress: (bio, result) => this.#discarded(bio, result) };
  readonly #punching: BioDriver = { bioProgress: (bio, result) => this.#punched(bio, result) };
  readonly #zeroing: BioDriver = { bioProgress: (bio, result) => this.#zeroed(bio, result) };
  readonly #filling: BioDriver = { bioProgress: (bio, result) => this.#filled(bio, result) };

  constructor(reactor: Reactor, geometry: DescriptorGeometry) {
    this.#reactor = reactor;
    this.name = geometry.name;
    this.#fd = geometry.fd;
    this.#sizeNow = geometry.sizeNow;
    this.#size = geometry.sizeNow();
    this.logicalBlockSize = geometry.logicalBlockSize;
    this.physicalBlockSize = geometry.physicalBlockSize;
    this.readOnly = geometry.readOnly;
    this.capabilities = geometry.capabilities;
    this.#kind = geometry.kind;
    // On tmpfs a seek passes every page; reading holes there costs no more.
    if (geometry.kind === 'file' && geometry.cached !== 'all' && ffiAvailable())
      this.holes = new FileHoles(geometry.fd, () => this.size);
    this.#cached = geometry.cached;
    this.#asksCache = geometry.cached === 'writes';
    this.#memoryAlignment = geometry.memoryAlignment;
    this.#bounce =
      geometry.memoryAlignment > 1
        ? new BounceSlots(reactor, geometry.fd, (bio, result) => this.#end(bio, result))
        : null;
    this.#canPunch = geometry.capabilities.discard;
    this.#zeroBytes = Math.min(ZERO_BYTES, reactor.arena.largest);
  }

  get size(): number {
    return this.#size;
  }

  refreshSize(): number {
    const size = this.#sizeNow();
    if (size === 0 || size % this.logicalBlockSize !== 0) {
      const wrong = size === 0 ? 'it is empty' : `size ${size} is not a multiple of ${this.logicalBlockSize}`;
      throw new BlksnapError('EINVAL', `Cannot take over the size of "${this.name}": ${wrong}`);
    }
    this.#size = size;
    return size;
  }

  submit(bio: Bio): void {
    const refused = rangeError(bio, this.#size, this.readOnly);
    if (refused !== 0) {
      bio.end(refused);
      return;
    }
    if (this.#lost !== 0 && (bio.op === FLUSH || (bio.flags & FUA) !== 0)) {
      bio.end(this.#lost);
      return;
    }
    bio.progress = 0;
    switch (bio.op) {
      case READ:
      case WRITE:
        if (this.#bounce !== null && bio.at % this.#memoryAlignment !== 0) {
          this.#bounce.submit(bio);
        } else {
          bio.driver = this.#transferring;
          this.#transfer(bio);
        }
        return;
      case FLUSH:
        this.#sync(bio);
        return;
      case DISCARD:
        this.#discard(bio);
        return;
      case WRITE_ZEROES:
        if (this.#canPunch && (bio.flags & NO_HOLE) === 0) this.#punch(bio);
        else this.#zeroRange(bio);
        return;
      default:
        unreachable(bio.op);
    }
  }

  /** Ends with a count or 0 as success, or with -errno. */
  #end(bio: Bio, result: number): void {
    // A durable write that failed may have lost what a flush before it had promised to keep.
    if (result === -ERRNO.EIO && bio.op !== READ && (bio.flags & FUA) !== 0) this.#lose(ERRNO.EIO);
    bio.end(result < 0 ? -result : 0);
  }

  // --- read, write ----------------------------------------------------------------------------

  #transfer(bio: Bio): void {
    const at = bio.at + bio.progress;
    const length = bio.length - bio.progress;
    const offset = bio.offset + bio.progress;
    if (bio.op === READ) {
      if (this.#cached === 'all') this.#reactor.readCached(this.#fd, at, length, offset, bio);
      else if (this.#asksCache) this.#asksCache = this.#reactor.readIfCached(this.#fd, at, length, offset, bio);
      else this.#reactor.read(this.#fd, at, length, offset, bio);
    } else if ((bio.flags & FUA) === 0 && this.#endsInMemory(offset, length)) {
      this.#reactor.writeCached(this.#fd, at, length, offset, bio);
    } else {
      this.#reactor.write(this.#fd, at, length, offset, (bio.flags & FUA) !== 0, bio);
    }
  }

  /** A write of part of a page may have to read the rest from the disk first. */
  #endsInMemory(offset: number, length: number): boolean {
    return this.#cached === 'all' || (this.#cached === 'writes' && offset % PAGE === 0 && length % PAGE === 0);
  }

  #transferred(bio: Bio, result: number): void {
    if (result > 0) bio.progress += result;
    if (bio.progress === bio.length) bio.end(0);
    else if (result > 0 || result === -ERRNO.EINTR) this.#transfer(bio);
    else this.#end(bio, result < 0 ? result : -ERRNO.EIO); // 0: the file has shrunk
  }

  // --- flush ----------------------------------------------------------------------------------

  #sync(bio: Bio): void {
    bio.driver = this.#syncing;
    this.#reactor.sync(this.#fd, bio);
  }

  #lose(errno: number): void {
    this.#lost = errno;
    this.onLost();
  }

  #synced(bio: Bio, result: number): void {
    if (result === -ERRNO.EINTR) return this.#sync(bio);
    if (result < 0) this.#lose(-result);
    // A sync that was under way when another failed may have found nothing left to write.
    bio.end(this.#lost);
  }

  /** The end of a discard or writeZeroes. */
  #settle(bio: Bio): void {
    if ((bio.flags & FUA) !== 0) this.#sync(bio);
    else bio.end(0);
  }

  // --- discard, writeZeroes -------------------------------------------------------------------

  #discard(bio: Bio): void {
    if (!this.#canPunch) return bio.end(ERRNO.EOPNOTSUPP);
    bio.driver = this.#discarding;
    this.#reactor.allocate(this.#fd, ALLOCATE_PUNCH_HOLE, bio.offset, bio.length, bio);
  }

  #discarded(bio: Bio, result: number): void {
    if (result === -ERRNO.EINTR) this.#discard(bio);
    else if (result < 0) bio.end(-result);
    else this.#settle(bio);
  }

  #punch(bio: Bio): void {
    bio.driver = this.#punching;
    this.#reactor.allocate(this.#fd, ALLOCATE_PUNCH_HOLE, bio.offset, bio.length, bio);
  }

  #punched(bio: Bio, result: number): void {
    if (result === -ERRNO.EOPNOTSUPP) {
      this.#canPunch = false;
      this.#zeroRange(bio);
    } else if (result === -ERRNO.EINTR) this.#punch(bio);
    else if (result < 0) bio.end(-result);
    else this.#settle(bio);
  }

  #zeroRange(bio: Bio): void {
    const fast = (bio.flags & FAST_ZERO) !== 0;
    // On a kernel device that cannot zero by itself, the kernel writes zeros.
    if (this.#canZeroRange && !(fast && this.#kind === 'kernel device')) {
      bio.driver = this.#zeroing;
      this.#reactor.allocate(this.#fd, ALLOCATE_ZERO_RANGE, bio.offset, bio.length, bio);
    } else if (fast) bio.end(ERRNO.EOPNOTSUPP);
    else this.#fill(bio);
  }

  #zeroed(bio: Bio, result: number): void {
    if (result === -ERRNO.EOPNOTSUPP) {
      this.#canZeroRange = false;
      this.#zeroRange(bio);
    } else if (result === -ERRNO.EINTR) this.#zeroRange(bio);
    else if (result < 0) bio.end(-result);
    else this.#settle(bio);
  }

  /** Writes zeros from a buffer that is borrowed at first need and kept. */
  #fill(bio: Bio): void {
    if (this.#zerosAt === NO_MEMORY && !this.#borrowZeros()) {
      if (this.#wantZeros.length === 0) this.#reactor.arena.whenFreed(this.#retryFill);
      this.#wantZeros.push(bio);
      return;
    }
    bio.driver = this.#filling;
    const length = Math.min(this.#zeroBytes, bio.length - bio.progress);
    this.#reactor.write(this.#fd, this.#zerosAt, length, bio.offset + bio.progress, false, bio);
  }

  #borrowZeros(): boolean {
    const { arena } = this.#reactor;
    const at = arena.allocate(this.#zeroBytes);
    if (at === NO_MEMORY) return false;
    arena.bytes.fill(0, at, at + this.#zeroBytes);
    this.#zerosAt = at;
    return true;
  }

  readonly #retryFill = (): void => {
    if (this.#borrowZeros()) {
      for (let bio = this.#wantZeros.shift(); bio !== null; bio = this.#wantZeros.shift()) this.#fill(bio);
    } else {
      this.#reactor.arena.whenFreed(this.#retryFill);
    }
  };

  #filled(bio: Bio, result: number): void {
    if (result > 0) bio.progress += result;
    if (bio.progress === bio.length) this.#settle(bio);
    else if (result > 0 || result === -ERRNO.EINTR) this.#fill(bio);
    else bio.end(result < 0 ? -result : ERRNO.EIO);
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    if (this.#kind === 'kernel device') return [{ length, hole: false, zero: false }];
    return fileExtents(this.#fd, { name: this.name, size: this.size, offset, length });
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#zerosAt !== NO_MEMORY) this.#reactor.arena.release(this.#zerosAt);
    this.#bounce?.close();
    fs.closeSync(this.#fd);
  }
}
