/** The portable driver: a reactor over node:fs and node:net.
 *
 *  For systems without io_uring. Correct everywhere, and slower: every operation costs a trip through Node's
 *  event loop, and one that may have to wait a trip through its thread pool and a closure. Uses the callback API of
 *  node:fs, which takes a third of the time of FileHandle. Results are Node's errors turned back into error numbers. */

import fs from 'node:fs';
import { assert } from '../../util/assert.ts';
import { ERRNO } from '../../util/errors.ts';
import { Arena } from '../arena.ts';
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
import { DoneList } from '../done-list.ts';
import { InlineGuard } from '../inline-guard.ts';
import { mapMemory, unmapMemory } from '../memory.ts';
import type { ReactorMemory } from '../memory.ts';
import { lengthOf } from '../segments.ts';
import type { Segments } from '../segments.ts';
import { noSlabs } from '../slab-pool.ts';
import type { SlabPool } from '../slab-pool.ts';
import { fallocate, ffiAvailable, writebackError } from '../sys.ts';
import { negativeErrno } from './errno.ts';
import { adoptStream, connectStream, listenOn } from './sockets.ts';
import type { SocketHost } from './sockets.ts';
import { JOIN_BYTES } from './stream.ts';
import type { PortableStream } from './stream.ts';

/** setTimeout takes anything longer for 1 ms. */
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1;
const CLOSE_POLL_MS = 1;
/** Node writes more slowly from a buffer whose length is no small integer of V8. */
const QUICK_BYTES = 2 ** 31 - 4096;
/** As in the uring driver: how long the loop looks for more before it sleeps, once it slept no longer than that
 *  so many times in a row. */
const SPIN_MS = 0.1;
const SHORT_SLEEPS = 4;
const CLOSE_LIMIT_MS = 5000;
/** What a socket may read when nothing is being received. */
const STAGING_BYTES = 64 * 1024;
/** Rounds of completions that begin more operations that are done at once, before whatever else waits has its turn. */
const MOST_ROUNDS = 64;

type FsCallback = (error: NodeJS.ErrnoException | null, count?: number) => void;

export interface PortableOptions {
  readonly arenaBytes: number;
  /** Default 0. */
  readonly slabBytes?: number;
}

export class PortableReactor implements Reactor, SocketHost {
  readonly driver = 'portable';
  readonly arena: Arena;
  readonly slabs: SlabPool;
  readonly #timers = new Map<number, NodeJS.Timeout>();
  #lastTimer = 0;
  readonly #hooks: Array<() => void> = [];
  #turnEnding = false;
  readonly #inline = new InlineGuard();
  #lastTurnMs = 0;
  #shortSleeps = 0;
  #spinning = false;
  /** Operations that were done at once; their completions run when the present callback has ended. */
  readonly #done = new DoneList((completion, result) => this.ended(completion, result));
  /** When the first file operation of these began; 0 when there is none. */
  #inlineSinceMs = 0;
  /** How often completions ended operations done at once, in this turn of the event loop. */
  #rounds = 0;
  #inFlight = 0;
  #sockets = 0;
  #closed = false;

  static open({ arenaBytes, slabBytes = 0 }: PortableOptions): PortableReactor {
    // Memory of our own is aligned to pages, as O_DIRECT asks; that of an ArrayBuffer is not.
    const mapped = ffiAvailable() ? mapMemory(arenaBytes, slabBytes, QUICK_BYTES) : -1;
    if (typeof mapped !== 'number') return new PortableReactor(mapped);
    return new PortableReactor({ arena: new Arena(new ArrayBuffer(arenaBytes), 0), slabs: noSlabs() });
  }

  private constructor({ arena, slabs }: ReactorMemory) {
    this.arena = arena;
    this.memory = arena.bytes;
    this.slabs = slabs;
  }

  // --- files ----------------------------------------------------------------------------------

  read(fd: number, at: number, length: number, offset: number, completion: Completion): void {
    const callback = this.#callback(completion);
    if (fd < 0) this.#fail(callback, 'EBADF');
    else fs.read(fd, this.arena.bytes, at, length, offset, callback);
  }

  write(fd: number, at: number, length: number, offset: number, durable: boolean, completion: Completion): void {
    const callback = this.#callback(completion);
    if (fd < 0) this.#fail(callback, 'EBADF');
    else if (durable) fs.write(fd, this.arena.bytes, at, length, offset, syncAfter(fd, callback));
    else fs.write(fd, this.arena.bytes, at, length, offset, callback);
  }

  readCached(fd: number, at: number, length: number, offset: number, completion: Completion): void {
    if (!this.#mayInline(fd, length)) return this.read(fd, at, length, offset, completion);
    try {
      this.finish(completion, fs.readSync(fd, this.arena.bytes, at, length, offset));
    } catch (error) {
      this.finish(completion, negativeErrno(error as NodeJS.ErrnoException));
    }
  }

  readIfCached(fd: number, at: number, length: number, offset: number, completion: Completion): boolean {
    this.read(fd, at, length, offset, completion);
    return false;
  }

  writeCached(fd: number, at: number, length: number, offset: number, completion: Completion): void {
    if (!this.#mayInline(fd, length)) return this.write(fd, at, length, offset, false, completion);
    try {
      this.finish(completion, fs.writeSync(fd, this.arena.bytes, at, length, offset));
    } catch (error) {
      this.finish(completion, negativeErrno(error as NodeJS.ErrnoException));
    }
  }

  readScatter(
    fd: number,
    { segments, count }: Segments,
    offset: number,
    cached: boolean,
    completion: Completion,
  ): void {
    if (!cached || !this.#mayInline(fd, lengthOf(segments, count))) {
      const callback = this.#callback(completion);
      if (fd < 0) this.#fail(callback, 'EBADF');
      else fs.readv(fd, this.#views(segments, count), offset, callback);
      return;
    }
    try {
      this.finish(completion, fs.readvSync(fd, this.#views(segments, count), offset));
    } catch (error) {
      this.finish(completion, negativeErrno(error as NodeJS.ErrnoException));
    }
  }

  writeGatherCached(fd: number, segments: Float64Array, count: number, offset: number, completion: Completion): void {
    if (!this.#mayInline(fd, lengthOf(segments, count)))
      return this.writeGather(fd, segments, count, offset, completion);
    try {
      this.finish(completion, fs.writevSync(fd, this.#views(segments, count), offset));
    } catch (error) {
      this.finish(completion, negativeErrno(error as NodeJS.ErrnoException));
    }
  }

  #mayInline(fd: number, length: number): boolean {
    const now = performance.now();
    if (fd < 0 || !this.#inline.allows(length, now)) return false;
    if (this.#inlineSinceMs === 0) this.#inlineSinceMs = now;
    return true;
  }

  /** Ends an operation that was done at once. */
  finish(completion: Completion, result: number): void {
    this.started();
    this.#done.add(completion, result);
    const later = this.#rounds >= MOST_ROUNDS;
    if (later) this.#learn();
    if (this.#done.length > 1) return;
    if (later) setImmediate(this.#endDone);
    else process.nextTick(this.#endDone);
  }

  readonly #endDone = (): void => {
    this.#learn();
    this.#rounds++;
    this.#done.end();
  };

  /** How long the calls took since the first of them; whatever else the event loop does comes later. */
  #learn(): void {
    if (this.#inlineSinceMs > 0) this.#inline.took(this.#inlineSinceMs, performance.now());
    this.#inlineSinceMs = 0;
  }

  writeGather(fd: number, segments: Float64Array, count: number, offset: number, completion: Completion): void {
    const callback = this.#callback(completion);
    if (fd < 0) this.#fail(callback, 'EBADF');
    else fs.writev(fd, this.#views(segments, count), offset, callback);
  }

  #views(segments: Float64Array, count: number): Uint8Array[] {
    const views: Uint8Array[] = [];
    for (let i = 0; i < count; i++) {
      const at = segments[i * 2]!;
      views.push(this.arena.bytes.subarray(at, at + segments[i * 2 + 1]!));
    }
    return views;
  }

  sync(fd: number, completion: Completion): void {
    const callback = this.#callback(completion);
    if (fd < 0) this.#fail(callback, 'EBADF');
    else fs.fdatasync(fd, callback);
  }

  /** Nothing: the system call may wait for a device, and blocks the thread. */
  beginWriteback(fd: number, _offset: number, _length: number, completion: Completion): void {
    const callback = this.#callback(completion);
    if (fd < 0) this.#fail(callback, 'EBADF');
    else setImmediate(callback, null);
  }

  /** The system call blocks the thread: Node has no other way to it. */
  writebackError(fd: number): number {
    return ffiAvailable() ? writebackError(fd) : 0;
  }

  allocate(fd: number, mode: AllocateMode, offset: number, length: number, completion: Completion): void {
    this.started();
    const result = ffiAvailable() ? fallocate(fd, mode, offset, length) : -ERRNO.EOPNOTSUPP;
    setImmediate(() => this.ended(completion, result));
  }

  closeFile(fd: number, completion: Completion): void {
    const callback = this.#callback(completion);
    if (fd < 0) this.#fail(callback, 'EBADF');
    else fs.close(fd, callback);
  }

  command(_fd: number, _code: number, _argument: Uint32Array, completion: Completion): void {
    this.started();
    setImmediate(() => this.ended(completion, -ERRNO.EOPNOTSUPP));
  }

  #callback(completion: Completion): FsCallback {
    this.started();
    return (error, count) => this.ended(completion, error === null ? (count ?? 0) : negativeErrno(error));
  }

  /** What node:fs would throw at once ends as the system call would end it. */
  #fail(callback: FsCallback, code: 'EBADF'): void {
    setImmediate(callback, Object.assign(new Error(code), { code }));
  }

  // --- for streams ----------------------------------------------------------------------------

  readonly memory: Uint8Array;
  readonly staging = new Uint8Array(STAGING_BYTES);
  readonly joined = new Uint8Array(JOIN_BYTES);

  started(): void {
    this.#inFlight++;
  }

  ended(completion: Completion, result: number): void {
    this.#inFlight--;
    this.turned();
    completion.complete(result);
  }

  /** Something was completed: the hooks run when the event loop has been through all that is ready. */
  turned(): void {
    if (this.#turnEnding) return;
    this.#turnEnding = true;
    setImmediate(this.#endTurn);
  }

  readonly #endTurn = (): void => {
    this.#turnEnding = false;
    this.#rounds = 0;
    for (const hook of this.#hooks) hook();
    const now = performance.now();
    this.#shortSleeps = now - this.#lastTurnMs < SPIN_MS ? this.#shortSleeps + 1 : 0;
    this.#lastTurnMs = now;
    if (this.#shortSleeps < SHORT_SLEEPS || this.#spinning) return;
    this.#spinning = true;
    setImmediate(this.#spin);
  };

  /** As long as something is to be done immediately, the event loop looks around without sleeping. */
  readonly #spin = (): void => {
    this.#spinning = performance.now() - this.#lastTurnMs < SPIN_MS;
    if (this.#spinning) setImmediate(this.#spin);
  };

  socketOpened(): void {
    this.#sockets++;
  }

  socketClosed(): void {
    this.#sockets--;
  }

  // --- time, hooks, messages ------------------------------------------------------------------

  now(): number {
    return performance.now();
  }

  timer(delayMs: number, completion: Completion): number {
    const handle = ++this.#lastTimer;
    const fire = (): void => {
      this.#timers.delete(handle);
      this.turned();
      completion.complete(0);
    };
    this.#timers.set(handle, setTimeout(fire, Math.min(delayMs, LONGEST_TIMEOUT_MS)));
    return handle;
  }

  cancelTimer(handle: number): void {
    clearTimeout(this.#timers.get(handle));
    this.#timers.delete(handle);
  }

  onTurnEnd(hook: () => void): void {
    this.#hooks.push(hook);
  }

  onMessages(port: MessagePortLike, handler: (message: unknown) => void): Notifier {
    const listener = (message: unknown): void => {
      this.turned();
      handler(message);
    };
    port.on('message', listener);
    return { wakeFd: -1, close: () => void port.off('message', listener) };
  }

  // --- sockets --------------------------------------------------------------------------------

  listen(address: SocketAddress, options: ListenOptions, onStream: (stream: Stream) => void): Promise<Listener> {
    return listenOn(this, address, options.mode ?? 0o600, onStream);
  }

  listenFd(fd: number, onStream: (stream: Stream) => void): Promise<Listener> {
    return listenOn(this, fd, 0, onStream);
  }

  connect(address: SocketAddress): Promise<PortableStream> {
    return connectStream(this, address);
  }

  adopt(readFd: number, writeFd: number): Stream {
    return adoptStream(this, readFd, writeFd);
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    // Node gives the descriptors of closed sockets back a little later.
    const limitMs = performance.now() + CLOSE_LIMIT_MS;
    while ((this.#inFlight > 0 || this.#sockets > 0) && performance.now() < limitMs) {
      await new Promise((resolve) => setTimeout(resolve, CLOSE_POLL_MS));
    }
    assert(this.#inFlight === 0 && this.#sockets === 0, 'everything opened through the reactor was closed');
    for (const timer of this.#timers.values()) clearTimeout(timer);
    this.#timers.clear();
    this.#closed = true;
    if (this.arena.address !== 0) unmapMemory(this.arena);
  }
}

/** A write's callback that makes what was written durable before it reports. */
function syncAfter(fd: number, callback: FsCallback): FsCallback {
  return (writeError, count) => {
    if (writeError !== null) callback(writeError);
    else fs.fdatasync(fd, (syncError) => callback(syncError, count));
  };
}
