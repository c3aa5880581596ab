/** Serves the requests of one ublk device: takes each from the kernel, passes it on as a bio, and gives its end back.
 *
 *      fetched -> (waits for memory) -> bio -> committed, which fetches the tag's next request
 *
 *  Hot path. A tag is an object made once; its data lies in the arena from the request to its end, so the memory is that of
 *  the requests under way, and when there is none, requests wait in the kernel. Data is copied from and to the request by
 *  pread and pwrite of the character device.
 *
 *  Every request is looked at as any client's: it is ours to answer, not the kernel's to be right. */

import fs from 'node:fs';
import { DISCARD, FLUSH, FUA, NO_HOLE, READ, WRITE, WRITE_ZEROES } from '../block/bio.ts';
import type { Bio, BioOwner, BioPool, Op } from '../block/bio.ts';
import type { BlockDevice } from '../block/device.ts';
import { NO_MEMORY } from '../io/arena.ts';
import type { Completion, Reactor } from '../io/reactor.ts';
import { mapSharedReadOnly, readAt, unmap, writeAt } from '../io/sys.ts';
import type { Mapping } from '../io/sys.ts';
import type { MemoryLine, MemoryWaiter } from '../nbd/memory-line.ts';
import { assert } from '../util/assert.ts';
import { codeOfErrno, ERRNO, errnoError, toBlksnapError } from '../util/errors.ts';
import {
  COMMIT_AND_FETCH_REQUEST,
  dataPosition,
  DESCRIPTOR_WORDS,
  FETCH_REQUEST,
  FLAG_FUA,
  FLAG_NO_UNMAP,
  OP_DISCARD,
  OP_FLUSH,
  OP_MASK,
  OP_READ,
  OP_WRITE,
  OP_WRITE_ZEROES,
  SECTOR_BYTES,
} from './ublk-protocol.ts';
import type { QueueShape } from './ublk-protocol.ts';

export interface UblkQueueOptions extends QueueShape {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  readonly line: MemoryLine;
  readonly device: BlockDevice;
}

/** The kernel takes a tag back: the device is stopped. */
const ABORTED = -ERRNO.ENODEV;

export class UblkQueue implements MemoryWaiter {
  readonly id: number;
  readonly depth: number;
  /** Resolves when the kernel has taken all tags back, because the device was stopped, or when it was left. */
  readonly ended: Promise<void>;
  readonly #o: UblkQueueOptions;
  #device: BlockDevice;
  readonly #fd: number;
  readonly #descriptors: Mapping;
  readonly #words: Uint32Array;
  /** What a command says: queue and tag, result, an address that copying by pread leaves 0. */
  readonly #argument = new Uint32Array(4);
  readonly #tags: Tag[] = [];
  /** Tags that wait for memory, in their order. */
  #waitingHead: Tag | null = null;
  #waitingTail: Tag | null = null;
  #bios = 0;
  #aborted = 0;
  #state: 'open' | 'leaving' | 'closed' = 'open';
  #resolveEnded: () => void = () => {};

  /** Opens the character device and asks for requests. Errors: ENOENT, EBUSY when another process serves it. */
  static open(options: UblkQueueOptions): UblkQueue {
    const { reactor, id, depth } = options;
    assert(reactor.driver === 'uring', 'the driver knows device commands');
    let fd: number;
    try {
      fd = fs.openSync(`/dev/ublkc${id}`, 'r+');
    } catch (cause) {
      throw toBlksnapError(cause, `Cannot serve ublk device ${id}`);
    }
    const mapping = mapSharedReadOnly(fd, depth * DESCRIPTOR_WORDS * 4, 0);
    if (typeof mapping !== 'number') return new UblkQueue(options, fd, mapping);
    fs.closeSync(fd);
    throw errnoError(-mapping, `Cannot map the requests of ublk device ${id}`);
  }

  private constructor(options: UblkQueueOptions, fd: number, descriptors: Mapping) {
    this.id = options.id;
    this.depth = options.depth;
    this.#o = options;
    this.#device = options.device;
    this.#fd = fd;
    this.#descriptors = descriptors;
    this.#words = new Uint32Array(descriptors.memory, 0, this.depth * DESCRIPTOR_WORDS);
    this.ended = new Promise((resolve) => (this.#resolveEnded = resolve));
    for (let number = 0; number < this.depth; number++) {
      const tag = new Tag(this, number);
      this.#tags.push(tag);
      this.#command(FETCH_REQUEST, tag, 0);
    }
  }

  /** Serves another device of the same content, if it served `old`. */
  redirect(old: BlockDevice, device: BlockDevice): void {
    if (this.#device === old) this.#device = device;
  }

  /** Takes no more requests, and resolves when those under way have ended. The device and what it still holds wait for
   *  the next server; the kernel hears of it when the reactor closes. */
  leave(): Promise<void> {
    if (this.#state === 'open') {
      this.#state = 'leaving';
      this.#settle();
    }
    return this.ended;
  }

  // --- from the kernel ------------------------------------------------------------------------

  /** A command of the tag has ended: with a request, or with the end of the device. */
  fetched(tag: Tag, result: number): void {
    if (result === 0) {
      if (this.#state === 'open') this.#take(tag);
      return;
    }
    // Any other end would be a command that is wrong; the tag is lost either way, and stopping the device is what is left.
    if (result !== ABORTED) this.#complain(tag, result);
    this.#aborted++;
    this.#settle();
  }

  #take(tag: Tag): void {
    const words = this.#words;
    const base = tag.number * DESCRIPTOR_WORDS;
    const opFlags = words[base]!;
    tag.kind = opFlags & OP_MASK;
    tag.length = words[base + 1]! * SECTOR_BYTES;
    tag.offset = (words[base + 2]! + words[base + 3]! * 2 ** 32) * SECTOR_BYTES;
    tag.flags = (opFlags & FLAG_FUA) === 0 ? 0 : FUA;
    switch (tag.kind) {
      case OP_READ:
      case OP_WRITE:
        if (tag.length > this.#o.maxIoBytes || !this.#isAligned(tag)) this.#commit(tag, -ERRNO.EIO);
        else this.#begin(tag);
        return;
      case OP_FLUSH:
        this.#submit(tag, FLUSH, 0, 0);
        return;
      case OP_DISCARD:
        if (this.#isAligned(tag)) this.#submit(tag, DISCARD, tag.offset, tag.length);
        else this.#commit(tag, -ERRNO.EIO);
        return;
      case OP_WRITE_ZEROES:
        if ((opFlags & FLAG_NO_UNMAP) !== 0) tag.flags |= NO_HOLE;
        if (this.#isAligned(tag)) this.#submit(tag, WRITE_ZEROES, tag.offset, tag.length);
        else this.#commit(tag, -ERRNO.EIO);
        return;
      default:
        this.#commit(tag, -ERRNO.EOPNOTSUPP);
    }
  }

  /** Where it lies is the device's to check. */
  #isAligned(tag: Tag): boolean {
    const block = this.#device.logicalBlockSize;
    return tag.length > 0 && tag.offset % block === 0 && tag.length % block === 0;
  }

  // --- memory ---------------------------------------------------------------------------------

  #begin(tag: Tag): void {
    if (this.#waitingHead === null && this.#lend(tag)) return;
    if (this.#waitingTail === null) this.#waitingHead = tag;
    else this.#waitingTail.next = tag;
    this.#waitingTail = tag;
    this.#o.line.join(this);
  }

  /** Begins a read or write if there is memory for it. */
  #lend(tag: Tag): boolean {
    const at = this.#o.line.allocate(tag.length, this);
    if (at === NO_MEMORY) return false;
    if (tag.kind === OP_READ) this.#submit(tag, READ, tag.offset, tag.length, at);
    else this.#write(tag, at);
    return true;
  }

  #write(tag: Tag, at: number): void {
    const { reactor, line } = this.#o;
    const copied = readAt(this.#fd, reactor.arena.address + at, tag.length, dataPosition(tag.number));
    if (copied === tag.length) {
      this.#submit(tag, WRITE, tag.offset, tag.length, at);
      return;
    }
    line.release(at, tag.length);
    this.#commit(tag, -ERRNO.EIO);
  }

  retry(): boolean {
    while (this.#waitingHead !== null && this.#state === 'open') {
      const tag = this.#waitingHead;
      if (!this.#lend(tag)) return false;
      this.#waitingHead = tag.next;
      if (this.#waitingHead === null) this.#waitingTail = null;
      tag.next = null;
    }
    return true;
  }

  // --- bios -----------------------------------------------------------------------------------

  #submit(tag: Tag, op: Op, offset: number, length: number, at = 0): void {
    this.#bios++;
    this.#device.submit(this.#o.pool.get(op, offset, length, at, tag.flags, tag));
  }

  bioEnded(tag: Tag, bio: Bio): void {
    const { reactor, pool, line } = this.#o;
    let result = -errnoForKernel(bio.status);
    if (bio.op === READ || bio.op === WRITE) {
      if (result === 0) result = bio.length;
      if (bio.op === READ && result > 0) {
        const copied = writeAt(this.#fd, reactor.arena.address + bio.at, bio.length, dataPosition(tag.number));
        if (copied !== bio.length) result = -ERRNO.EIO;
      }
      line.release(bio.at, bio.length);
    }
    pool.put(bio);
    this.#bios--;
    this.#commit(tag, result);
    if (this.#state === 'leaving') this.#settle();
  }

  #commit(tag: Tag, result: number): void {
    this.#command(COMMIT_AND_FETCH_REQUEST, tag, result);
  }

  #command(code: number, tag: Tag, result: number): void {
    this.#argument[0] = tag.number << 16;
    this.#argument[1] = result;
    this.#o.reactor.command(this.#fd, code, this.#argument, tag);
  }

  // --- the end --------------------------------------------------------------------------------

  #settle(): void {
    const over = this.#state === 'leaving' || this.#aborted === this.depth;
    if (!over || this.#bios > 0 || this.#state === 'closed') return;
    this.#state = 'closed';
    this.#waitingHead = this.#waitingTail = null;
    this.#o.line.recheck();
    unmap(this.#descriptors.address, this.#descriptors.memory.byteLength);
    fs.closeSync(this.#fd);
    this.#resolveEnded();
  }

  #complain(tag: Tag, result: number): void {
    process.emitWarning(`request ${tag.number} of ublk device ${this.id} is lost: ${codeOfErrno(-result)}`);
  }
}

/** One of the requests that the kernel may have under way: hears of its commands and of its bio. */
class Tag implements Completion, BioOwner {
  readonly number: number;
  readonly #queue: UblkQueue;
  kind = OP_READ;
  offset = 0;
  length = 0;
  flags = 0;
  /** In the line for memory. */
  next: Tag | null = null;

  constructor(queue: UblkQueue, number: number) {
    this.#queue = queue;
    this.number = number;
  }

  complete(result: number): void {
    this.#queue.fetched(this, result);
  }

  bioEnded(bio: Bio): void {
    this.#queue.bioEnded(this, bio);
  }
}

/** The kernel does something special on some errors (it tries again on ENOMEM and EAGAIN): it hears of those alone
 *  that mean the same there. */
function errnoForKernel(status: number): number {
  switch (status) {
    case 0:
    case ERRNO.ENOSPC:
    case ERRNO.EOPNOTSUPP:
    case ERRNO.ETIMEDOUT:
      return status;
    default:
      return ERRNO.EIO;
  }
}
