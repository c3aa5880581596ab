/** The uring driver: a reactor over one io_uring.
 *
 *  The loop runs inside one JavaScript turn: enter (submit what was prepared, wait for one
 *  completion), reap, end-of-turn hooks, microtasks, again. So a batch of requests costs one
 *  system call and no trip through the event loop. It sleeps in the kernel; another thread wakes
 *  it through an eventfd. With nothing under way it stops, and the next operation starts it.
 *
 *  `cooperative` is for a thread that has other things to do (the main thread): the loop then
 *  returns to the event loop every 2 ms, and sleeps for 1 ms at first, 32 ms when nothing happens. */

import fs from 'node:fs';
import { receiveMessageOnPort } from 'node:worker_threads';
import type { MessagePort } from 'node:worker_threads';
import { assert } from '../../util/assert.ts';
import { BlksnapError, ERRNO, errnoError } from '../../util/errors.ts';
import { NO_MEMORY } from '../arena.ts';
import type { Arena } from '../arena.ts';
import { DoneList } from '../done-list.ts';
import { mapMemory, unmapMemory } from '../memory.ts';
import type { ReactorMemory } from '../memory.ts';
import type {
  AllocateMode,
  Completion,
  ListenOptions,
  Listener,
  MessagePortLike,
  Notifier,
  Reactor,
  SocketAddress,
  Stream,
} from '../reactor.ts';
import { completed } from '../reactor.ts';
import * as sys from '../sys.ts';
import {
  OP_ACCEPT,
  OP_ASYNC_CANCEL,
  OP_CLOSE_ASYNC,
  OP_FALLOCATE,
  OP_FSYNC,
  OP_READ,
  OP_READV,
  OP_SYNC_FILE_RANGE,
  OP_WRITE,
  OP_WRITEV,
  Ring,
} from './ring.ts';
import { boundPort, connectSocket, openListener, prepareSocket, resolveHost } from './sockets.ts';
import { STREAM_MEMORY, UringStream } from './stream.ts';
import type { StreamHost } from './stream.ts';
import { Timers } from '../timers.ts';
import { InlineGuard } from '../inline-guard.ts';
import { GatherList } from './gather-list.ts';
import { lengthOf } from '../segments.ts';
import type { Segments } from '../segments.ts';

const RWF_DSYNC = 2;
const FSYNC_DATASYNC = 1;
const SOCK_CLOEXEC = 0x80000;
const COOPERATIVE_WAITS_MS = { first: 1, longest: 32 };
/** How long the loop may keep the thread's event loop waiting while it is busy. */
const YIELD_EVERY_MS = 50;
const COOPERATIVE_YIELD_MS = 2;

/** A copied write is done in three: its copy's read, itself, and what its end sets going. */
const DONE_ROUNDS = 4;
/** Sleeps shorter than this are worth avoiding, once there were so many of them in a row. */
const SPIN_MS = 0.1;
const SHORT_SLEEPS = 4;

/** Runs what promises have queued. Node's own, undocumented, but there since version 0.x; without it
 *  the loop returns to the event loop after every turn. */
const runMicrotasks = (process as unknown as { _tickCallback?: () => void })._tickCallback;

/** Marks the slot of a device command. */
const COMMAND = 1 << 30;
const IGNORED: Completion = { complete(): void {} };

export interface UringOptions {
  /** Submission entries, a power of two. */
  readonly entries?: number;
  readonly arenaBytes: number;
  /** Default 0. */
  readonly slabBytes?: number;
  readonly cooperative?: boolean;
}

export class UringReactor implements Reactor, StreamHost {
  readonly driver = 'uring';
  readonly arena: Arena;
  readonly slabs: Reactor['slabs'];
  readonly #ring: Ring;
  readonly #cooperative: boolean;
  /** Who hears of operation i. */
  readonly #completions: Array<Completion | null> = [];
  readonly #freeSlots: number[] = [];
  /** Operations that wait for the outside (accept, wake-up): they keep the loop but are not work. */
  #background = 0;
  /** Device commands under way: background, too. */
  #commands = 0;
  readonly #timers = new Timers();
  readonly #hooks: Array<() => void> = [];
  readonly #gather: GatherList;
  readonly #done = new DoneList((completion, result) => completion.complete(result));
  readonly #inline = new InlineGuard();
  /** Something was done at once in this turn. */
  #inlined = false;
  #shortSleeps = 0;
  /** How long a cooperative loop sleeps. */
  #patienceMs = COOPERATIVE_WAITS_MS.first;
  #streams = 0;
  #now = performance.now();
  #running = false;
  #closed = false;
  readonly #sink = (userData: number, result: number): void => {
    if (userData >= COMMAND) this.#commands--;
    const slot = userData & ~COMMAND;
    const completion = this.#completions[slot]!;
    this.#completions[slot] = null;
    this.#freeSlots.push(slot);
    completion.complete(result);
  };
  readonly #loop = (): void => this.#run();

  static open(options: UringOptions): UringReactor {
    const ring = Ring.open(options.entries ?? 1024);
    const memory = mapMemory(options.arenaBytes, options.slabBytes ?? 0);
    if (typeof memory === 'number') {
      ring.close();
      throw errnoError(ERRNO.ENOMEM, `Cannot map ${options.arenaBytes} bytes for the arena`);
    }
    return new UringReactor(ring, memory, options.cooperative ?? false);
  }

  private constructor(ring: Ring, { arena, slabs }: ReactorMemory, cooperative: boolean) {
    this.#ring = ring;
    this.arena = arena;
    this.slabs = slabs;
    slabs.prepare = (at, length) => ring.preparePopulate(arena.address + at, length, this.#slot(IGNORED));
    this.#gather = new GatherList(arena.address, () => ring.submitAll());
    this.#cooperative = cooperative;
  }

  // --- operations -----------------------------------------------------------------------------

  /** For streams. Starts an operation on an absolute address. */
  start(
    op: number,
    fd: number,
    address: number,
    length: number,
    offset: number,
    opFlags: number,
    completion: Completion,
  ): void {
    this.#ring.prepare(op, fd, address, length, offset, opFlags, this.#slot(completion));
    if (!this.#running) this.#wake();
  }

  #slot(completion: Completion): number {
    const slot = this.#freeSlots.length > 0 ? this.#freeSlots.pop()! : this.#completions.length;
    this.#completions[slot] = completion;
    return slot;
  }

  get memory(): { readonly address: number; readonly view: DataView } {
    return this.arena;
  }

  read(fd: number, at: number, length: number, offset: number, completion: Completion): void {
    this.start(OP_READ, fd, this.arena.address + at, length, offset, 0, completion);
  }

  write(fd: number, at: number, length: number, offset: number, durable: boolean, completion: Completion): void {
    this.start(OP_WRITE, fd, this.arena.address + at, length, offset, durable ? RWF_DSYNC : 0, completion);
  }

  readCached(fd: number, at: number, length: number, offset: number, completion: Completion): void {
    if (!this.#inline.allows(length, this.#now)) return this.read(fd, at, length, offset, completion);
    this.#inlined = true;
    this.finish(completion, sys.readAt(fd, this.arena.address + at, length, offset));
  }

  readIfCached(fd: number, at: number, length: number, offset: number, completion: Completion): boolean {
    let result = 0;
    if (this.#inline.allows(length, this.#now)) {
      result = sys.readVectorNow(fd, this.#gather.single(at, length), 1, offset);
      this.#inlined ||= result > 0;
    }
    if (result === length) this.finish(completion, result);
    else this.read(fd, at, length, offset, completion); // All of it, and whatever error there is.
    return result !== -ERRNO.EOPNOTSUPP;
  }

  writeCached(fd: number, at: number, length: number, offset: number, completion: Completion): void {
    if (!this.#inline.allows(length, this.#now)) return this.write(fd, at, length, offset, false, completion);
    this.#inlined = true;
    this.finish(completion, sys.writeAt(fd, this.arena.address + at, length, offset));
  }

  /** For streams. Ends an operation that was done at once: its completion runs later in the turn. */
  finish(completion: Completion, result: number): void {
    this.#done.add(completion, result);
    if (!this.#running) this.#wake();
  }

  writeGather(fd: number, segments: Float64Array, count: number, offset: number, completion: Completion): void {
    this.start(OP_WRITEV, fd, this.#gather.add(segments, count), count, offset, 0, completion);
  }

  readScatter(
    fd: number,
    { segments, count }: Segments,
    offset: number,
    cached: boolean,
    completion: Completion,
  ): void {
    const iovecs = this.#gather.add(segments, count);
    if (!cached || !this.#inline.allows(lengthOf(segments, count), this.#now))
      return this.start(OP_READV, fd, iovecs, count, offset, 0, completion);
    this.#inlined = true;
    this.finish(completion, sys.readVectorAt(fd, iovecs, count, offset));
  }

  writeGatherCached(fd: number, segments: Float64Array, count: number, offset: number, completion: Completion): void {
    if (!this.#inline.allows(lengthOf(segments, count), this.#now))
      return this.writeGather(fd, segments, count, offset, completion);
    this.#inlined = true;
    this.finish(completion, sys.writeVectorAt(fd, this.#gather.add(segments, count), count, offset));
  }

  sync(fd: number, completion: Completion): void {
    this.start(OP_FSYNC, fd, 0, 0, 0, FSYNC_DATASYNC, completion);
  }

  beginWriteback(fd: number, offset: number, length: number, completion: Completion): void {
    this.start(OP_SYNC_FILE_RANGE, fd, 0, length, offset, sys.SYNC_FILE_RANGE_WRITE, completion);
  }

  readonly writebackError = sys.writebackError;

  allocate(fd: number, mode: AllocateMode, offset: number, length: number, completion: Completion): void {
    // fallocate(2) by io_uring: `addr` is the length, `len` the mode.
    this.start(OP_FALLOCATE, fd, length, mode, offset, 0, completion);
  }

  closeFile(fd: number, completion: Completion): void {
    this.start(OP_CLOSE_ASYNC, fd, 0, 0, 0, 0, completion);
  }

  command(fd: number, code: number, argument: Uint32Array, completion: Completion): void {
    this.#commands++;
    this.#ring.prepareCommand(fd, code, argument, this.#slot(completion) | COMMAND);
    if (!this.#running) this.#wake();
  }

  cancel(completion: Completion): void {
    const slot = this.#completions.indexOf(completion);
    if (slot >= 0) this.start(OP_ASYNC_CANCEL, -1, slot, 0, 0, 0, IGNORED);
  }

  // --- time, hooks, messages ------------------------------------------------------------------

  now(): number {
    return this.#now;
  }

  timer(delayMs: number, completion: Completion): number {
    const handle = this.#timers.add(performance.now() + delayMs, completion);
    if (!this.#running) this.#wake();
    return handle;
  }

  cancelTimer(handle: number): void {
    this.#timers.cancel(handle);
  }

  onTurnEnd(hook: () => void): void {
    this.#hooks.push(hook);
  }

  onMessages(port: MessagePortLike, handler: (message: unknown) => void): Notifier {
    if (this.#cooperative) {
      port.on('message', handler);
      return { wakeFd: -1, close: () => void port.off('message', handler) };
    }
    const at = this.#allocate(8);
    const fd = sys.eventfd();
    if (fd < 0) {
      this.arena.release(at);
      throw errnoError(-fd, 'Cannot make an eventfd');
    }
    const receive = (): { message: unknown } | undefined => receiveMessageOnPort(port as MessagePort);
    let open = true;
    const completion: Completion = {
      complete: () => {
        this.#background--;
        if (!open) {
          fs.closeSync(fd);
          this.arena.release(at);
          return;
        }
        listen();
        for (let next = receive(); next !== undefined; next = receive()) handler(next.message);
      },
    };
    const listen = (): void => {
      this.#background++;
      this.start(OP_READ, fd, this.arena.address + at, 8, 0, 0, completion);
    };
    listen();
    return {
      wakeFd: fd,
      close: () => {
        if (open) this.cancel(completion);
        open = false;
      },
    };
  }

  // --- sockets --------------------------------------------------------------------------------

  async listen(address: SocketAddress, options: ListenOptions, onStream: (stream: Stream) => void): Promise<Listener> {
    const opened = openListener(await resolveHost(address), options.mode ?? 0o600);
    return this.#accept(opened.fd, opened.address, onStream, () => {
      sys.shutdownSocket(opened.fd); // From here on nobody connects, though the descriptor goes a turn later.
      if (opened.address.kind === 'unix') fs.rmSync(opened.address.path, { force: true });
    });
  }

  async listenFd(fd: number, onStream: (stream: Stream) => void): Promise<Listener> {
    return this.#accept(fd, { kind: 'tcp', host: '', port: boundPort(fd) }, onStream, () => {});
  }

  #accept(fd: number, address: SocketAddress, onStream: (stream: Stream) => void, onClose: () => void): Listener {
    let open = true;
    const completion: Completion = {
      complete: (result) => {
        this.#background--;
        if (result >= 0 && !open) fs.closeSync(result);
        else if (result >= 0) this.#accepted(result, onStream);
        if (open) accept(result < 0 && result !== -ERRNO.ECANCELED);
        else fs.closeSync(fd);
      },
    };
    const start = (): void => {
      this.#background++;
      this.start(OP_ACCEPT, fd, 0, 0, 0, SOCK_CLOEXEC, completion);
    };
    const retry: Completion = { complete: () => (open ? start() : fs.closeSync(fd)) };
    // Out of descriptors (EMFILE) and the like pass: trying again at once would spin.
    const accept = (failed: boolean): void => (failed ? void this.timer(100, retry) : start());
    accept(false);
    return {
      address,
      close: () => {
        if (!open) return;
        open = false;
        this.cancel(completion);
        onClose();
      },
    };
  }

  #accepted(fd: number, onStream: (stream: Stream) => void): void {
    prepareSocket(fd);
    const listsAt = this.arena.allocate(STREAM_MEMORY);
    if (listsAt === NO_MEMORY) fs.closeSync(fd);
    else onStream(this.#stream(fd, fd, true, listsAt));
  }

  async connect(address: SocketAddress): Promise<Stream> {
    // Its memory first, which holds the address until it is connected: without any, nothing is open yet.
    const at = this.#allocate(STREAM_MEMORY);
    try {
      const fd = await connectSocket(this, address, at);
      return this.#stream(fd, fd, true, at);
    } catch (cause) {
      this.arena.release(at);
      throw cause;
    }
  }

  adopt(readFd: number, writeFd: number): Stream {
    const isSocket = readFd === writeFd && fs.fstatSync(readFd).isSocket();
    return this.#stream(readFd, writeFd, isSocket, this.#allocate(STREAM_MEMORY));
  }

  #stream(readFd: number, writeFd: number, isSocket: boolean, listsAt: number): Stream {
    this.#streams++;
    return new UringStream(this, readFd, writeFd, isSocket, listsAt);
  }

  streamClosed(_stream: UringStream, listsAt: number): void {
    this.#streams--;
    this.arena.release(listsAt);
  }

  #allocate(length: number): number {
    const at = this.arena.allocate(length);
    if (at === NO_MEMORY) throw new BlksnapError('ENOMEM', `Cannot allocate ${length} bytes: the arena is full`);
    return at;
  }

  // --- the loop -------------------------------------------------------------------------------

  get inFlight(): number {
    return this.#pending - this.#background - this.#commands + this.#done.length;
  }

  /** Operations that the kernel has. */
  get #pending(): number {
    return this.#completions.length - this.#freeSlots.length;
  }

  /** But for so many operations. */
  #isIdle(pending: number): boolean {
    return this.#pending === pending && this.#timers.size === 0 && this.#done.length === 0;
  }

  #wake(): void {
    this.#running = true;
    setImmediate(this.#loop);
  }

  #run(): void {
    // Closed since this turn was asked for: a timer that was cancelled leaves nothing to wait for.
    if (this.#closed) return;
    const started = performance.now();
    const yieldMs = this.#cooperative ? COOPERATIVE_YIELD_MS : YIELD_EVERY_MS;
    do {
      this.#turn();
      if (this.#closed || this.#isIdle(0)) {
        this.#running = false;
        return;
      }
    } while (runMicrotasks !== undefined && this.#now - started < yieldMs);
    setImmediate(this.#loop);
  }

  #turn(): void {
    const ring = this.#ring;
    const hasDone = this.#done.length > 0;
    if (hasDone) ring.enter(0, -1);
    else this.#sleep();
    if (ring.unsubmitted === 0) this.#gather.clear();
    this.#now = performance.now();
    const reaped = ring.reap(this.#sink);
    if (reaped > 0 || hasDone) this.#patienceMs = COOPERATIVE_WAITS_MS.first;
    else this.#patienceMs = Math.min(this.#patienceMs * 2, COOPERATIVE_WAITS_MS.longest);
    this.#timers.expire(this.#now);
    // Not without end: the ring must have its turn.
    for (let round = 0; round < DONE_ROUNDS && this.#done.length > 0; round++) this.#done.end();
    // Replies leave in microtasks: before the hooks' background work, and after it those of what it ended.
    runMicrotasks?.();
    for (const hook of this.#hooks) hook();
    runMicrotasks?.();
    if (this.#inlined) {
      this.#inlined = false;
      this.#inline.took(this.#now, performance.now());
    }
  }

  /** Submits, and waits for a completion. After several short sleeps in a row the next completion is
   *  looked for without sleeping, for a moment: falling asleep and waking up would take longer. */
  #sleep(): void {
    const ring = this.#ring;
    const began = performance.now();
    if (this.#shortSleeps >= SHORT_SLEEPS) {
      do {
        ring.enter(0, -1);
        if (ring.ready()) return;
      } while (performance.now() - began < SPIN_MS);
      this.#shortSleeps = 0;
    }
    ring.enter(1, this.#waitMs());
    if (performance.now() - began < SPIN_MS) this.#shortSleeps++;
    else this.#shortSleeps = 0;
  }

  /** How long the kernel may let us sleep: until the next timer, or -1. */
  #waitMs(): number {
    const next = this.#timers.next;
    if (next === Infinity) return this.#cooperative ? this.#patienceMs : -1;
    const wait = Math.max(0, next - performance.now());
    return this.#cooperative ? Math.min(wait, this.#patienceMs) : wait;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    // Cancelled listeners and wake-ups end in the next turns, device commands with the ring.
    for (let i = 0; i < 1000 && !this.#isIdle(this.#commands); i++) await completed((c) => void this.timer(1, c));
    assert(this.#isIdle(this.#commands) && this.#streams === 0, 'everything opened through the reactor was closed');
    this.#closed = true;
    this.#ring.close();
    unmapMemory(this.arena);
    this.#gather.close();
  }
}
