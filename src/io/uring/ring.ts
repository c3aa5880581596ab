/** One io_uring: its two rings as typed arrays over shared memory, and the calls that feed it.
 *
 *  Layouts: linux/io_uring.h (struct io_uring_params 120 bytes, io_uring_sqe 64, io_uring_cqe 16). A wide ring has entries
 *  of 128 bytes, for commands with more to say.
 *  The ring knows nothing of what is submitted: user_data is a number of the caller's.
 *  Belongs to the thread that opened it. */

import fs from 'node:fs';
import { assert } from '../../util/assert.ts';
import { BlksnapError, errnoError } from '../../util/errors.ts';
import { mapAnonymous, mapShared, uringEnter, uringSetup, unmap } from '../sys.ts';
import type { Mapping } from '../sys.ts';

const SETUP_CQSIZE = 1 << 3;
const SETUP_SUBMIT_ALL = 1 << 7;
const SETUP_SQE128 = 1 << 10;
const SETUP_SINGLE_ISSUER = 1 << 12;
const SETUP_DEFER_TASKRUN = 1 << 13;
const FEAT_SINGLE_MMAP = 1 << 0;
const FEAT_EXT_ARG = 1 << 8;
const OFFSET_SQES = 0x10000000;
const ENTER_GETEVENTS = 1;
const ENTER_EXT_ARG = 8;
/** struct io_uring_getevents_arg (24 bytes), then a struct __kernel_timespec (16 bytes). */
const EXT_ARG_SIZE = 24;

const EINTR = 4;
const EAGAIN = 11;
const EBUSY = 16;
const ETIME = 62;

// Operation codes.
export const OP_READV = 1;
export const OP_WRITEV = 2;
export const OP_SYNC_FILE_RANGE = 8;
export const OP_SENDMSG = 9;
export const OP_FSYNC = 3;
export const OP_ACCEPT = 13;
export const OP_ASYNC_CANCEL = 14;
export const OP_CONNECT = 16;
export const OP_FALLOCATE = 17;
export const OP_READ = 22;
export const OP_WRITE = 23;
export const OP_RECV = 27;
/** With IOSQE_ASYNC, in the byte that follows the code: by a worker of the kernel, never while it is submitted. */
export const OP_CLOSE_ASYNC = 19 | (0x10 << 8);
const OP_MADVISE = 25;
const OP_URING_CMD = 46;

/** MADV_POPULATE_WRITE of Linux 5.14 and later; earlier ones refuse it, and memory is made ready when it is touched first. */
const POPULATE_WRITE = 23;

/** Where a command's own argument begins in an entry, in 32-bit words. */
const COMMAND_WORD = 12;

/** Each is a system call. */
const SUBMIT_TRIES = 1_000_000;

const high = (value: number): number => Math.floor(value / 2 ** 32) >>> 0;

export class Ring {
  readonly fd: number;
  readonly #enter = uringEnter();
  /** Both rings, as u32 and i32. */
  readonly #u32: Uint32Array;
  readonly #i32: Int32Array;
  readonly #sqes: Uint32Array;
  readonly #sqesSigned: Int32Array;
  readonly #entries: number;
  /** An entry has 2 to this power 32-bit words. */
  readonly #shift: number;
  // Indexes into #u32.
  readonly #sqTail: number;
  readonly #cqHead: number;
  readonly #cqTail: number;
  readonly #cqMask: number;
  readonly #cqes: number;
  readonly #extArg: Mapping;
  readonly #extArgView: DataView;
  readonly #mappings: Mapping[] = [];
  #tail = 0;
  #unsubmitted = 0;

  /** Errors: EPERM or ENOSYS where the kernel or a seccomp profile forbids io_uring; EOPNOTSUPP for one too old. */
  static open(entries: number, options: { readonly wide?: boolean } = {}): Ring {
    const params = new DataView(new ArrayBuffer(120));
    const attempts = [SETUP_SUBMIT_ALL | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN, 0];
    const width = options.wide === true ? SETUP_SQE128 : 0;
    let fd = 0;
    for (const flags of attempts) {
      params.setUint32(8, SETUP_CQSIZE | flags | width, true);
      params.setUint32(4, entries * 4, true);
      fd = uringSetup(entries, new Uint8Array(params.buffer));
      if (fd >= 0) break;
    }
    if (fd < 0) throw errnoError(-fd, 'Cannot set up io_uring');
    const needed = FEAT_SINGLE_MMAP | FEAT_EXT_ARG;
    if ((params.getUint32(20, true) & needed) !== needed) {
      fs.closeSync(fd);
      throw new BlksnapError('EOPNOTSUPP', 'Cannot use io_uring: the kernel is too old (want 5.11 or newer)');
    }
    return new Ring(fd, params);
  }

  private constructor(fd: number, params: DataView) {
    const field = (offset: number): number => params.getUint32(offset, true);
    this.fd = fd;
    this.#entries = field(0);
    this.#shift = (field(8) & SETUP_SQE128) === 0 ? 4 : 5;
    const cqEntries = field(4);
    const sq = 40; // struct io_sqring_offsets
    const cq = 80; // struct io_cqring_offsets
    const sqArray = field(sq + 24);
    const cqesAt = field(cq + 20);
    const rings = this.#mapped(Math.max(sqArray + this.#entries * 4, cqesAt + cqEntries * 16), 0);
    const sqes = this.#mapped((this.#entries * 4) << this.#shift, OFFSET_SQES);
    this.#u32 = new Uint32Array(rings.memory, 0, rings.memory.byteLength >> 2);
    this.#i32 = new Int32Array(rings.memory, 0, rings.memory.byteLength >> 2);
    this.#sqes = new Uint32Array(sqes.memory);
    this.#sqesSigned = new Int32Array(sqes.memory);
    this.#sqTail = field(sq + 4) >> 2;
    this.#cqHead = field(cq) >> 2;
    this.#cqTail = field(cq + 4) >> 2;
    this.#cqMask = cqEntries - 1;
    this.#cqes = cqesAt >> 2;
    for (let i = 0; i < this.#entries; i++) this.#u32[(sqArray >> 2) + i] = i;
    const extArg = mapAnonymous(4096);
    if (typeof extArg === 'number') throw errnoError(-extArg, 'Cannot map memory');
    this.#extArg = extArg;
    this.#extArgView = new DataView(extArg.memory);
    const timespecAt = extArg.address + EXT_ARG_SIZE;
    this.#extArgView.setUint32(16, timespecAt >>> 0, true);
    this.#extArgView.setUint32(20, high(timespecAt), true);
  }

  #mapped(length: number, offset: number): Mapping {
    const mapping = mapShared(this.fd, length, offset, true);
    if (typeof mapping === 'number') {
      fs.closeSync(this.fd);
      throw errnoError(-mapping, 'Cannot map the io_uring');
    }
    this.#mappings.push(mapping);
    return mapping;
  }

  /** Entries written but not yet handed to the kernel. */
  get unsubmitted(): number {
    return this.#unsubmitted;
  }

  /** Writes one submission entry. Hands the batch to the kernel first when the ring is full. */
  prepare(
    op: number,
    fd: number,
    address: number,
    length: number,
    offset: number,
    opFlags: number,
    userData: number,
  ): void {
    if (this.#unsubmitted === this.#entries) this.submitAll();
    const sqes = this.#sqes;
    const base = (this.#tail & (this.#entries - 1)) << this.#shift;
    sqes[base] = op;
    this.#sqesSigned[base + 1] = fd;
    sqes[base + 2] = offset >>> 0;
    sqes[base + 3] = offset < 0 ? 0xffffffff : high(offset);
    sqes[base + 4] = address >>> 0;
    sqes[base + 5] = high(address);
    sqes[base + 6] = length;
    sqes[base + 7] = opFlags;
    sqes[base + 8] = userData;
    for (let i = base + 9; i < base + 16; i++) sqes[i] = 0;
    this.#tail = (this.#tail + 1) >>> 0;
    this.#unsubmitted++;
  }

  /** As prepare, of a command to the device behind the descriptor. Copies its argument: up to 4 words, or 20 in a wide ring. */
  prepareCommand(fd: number, code: number, argument: Uint32Array, userData: number): void {
    assert(argument.length <= (1 << this.#shift) - COMMAND_WORD, 'the argument fits into an entry');
    this.prepare(OP_URING_CMD, fd, 0, 0, code, 0, userData);
    const base = (((this.#tail - 1) & (this.#entries - 1)) << this.#shift) + COMMAND_WORD;
    for (let i = 0; i < argument.length; i++) this.#sqes[base + i] = argument[i]!;
  }

  /** As prepare, of having memory touched by a worker of the kernel. */
  preparePopulate(address: number, length: number, userData: number): void {
    this.prepare(OP_MADVISE, -1, address, length, 0, POPULATE_WRITE, userData);
  }

  /** Hands everything prepared to the kernel. It may refuse for a moment (EAGAIN, EBUSY); that it does so for
   *  ever is no reason to write over an entry. */
  submitAll(): void {
    for (let tries = 0; this.#unsubmitted > 0; tries++) {
      assert(tries < SUBMIT_TRIES, 'the kernel takes submissions');
      this.enter(0, -1);
    }
  }

  /** Submits what was prepared and waits until `wait` completions are there, for at most `timeoutMs`
   *  (-1: as long as it takes). Being interrupted or timing out is not an error. */
  enter(wait: number, timeoutMs: number): void {
    Atomics.store(this.#u32, this.#sqTail, this.#tail);
    let flags = ENTER_GETEVENTS;
    let argument = 0;
    let argumentSize = 0;
    if (wait > 0 && timeoutMs >= 0) {
      const seconds = Math.floor(timeoutMs / 1000);
      this.#extArgView.setUint32(EXT_ARG_SIZE, seconds, true);
      this.#extArgView.setUint32(EXT_ARG_SIZE + 8, Math.floor((timeoutMs - seconds * 1000) * 1e6), true);
      flags |= ENTER_EXT_ARG;
      argument = this.#extArg.address;
      argumentSize = EXT_ARG_SIZE;
    }
    const result = this.#enter(this.fd, this.#unsubmitted, wait, flags, argument, argumentSize);
    if (result >= 0) {
      this.#unsubmitted -= result;
    } else if (result !== -EINTR && result !== -EAGAIN && result !== -EBUSY && result !== -ETIME) {
      throw errnoError(-result, 'Cannot enter io_uring');
    }
  }

  /** Whether completions are there. */
  ready(): boolean {
    return this.#u32[this.#cqHead] !== Atomics.load(this.#u32, this.#cqTail);
  }

  /** Hands every completion that is there to `sink`; returns how many. */
  reap(sink: (userData: number, result: number) => void): number {
    const u32 = this.#u32;
    let head = u32[this.#cqHead]!;
    const tail = Atomics.load(u32, this.#cqTail);
    let count = 0;
    while (head !== tail) {
      const cqe = this.#cqes + ((head & this.#cqMask) << 2);
      const userData = u32[cqe]!;
      const result = this.#i32[cqe + 2]!;
      head = (head + 1) >>> 0;
      count++;
      sink(userData, result);
    }
    Atomics.store(u32, this.#cqHead, head);
    return count;
  }

  close(): void {
    fs.closeSync(this.fd);
    for (const mapping of [...this.#mappings, this.#extArg]) unmap(mapping.address, mapping.memory.byteLength);
  }
}
