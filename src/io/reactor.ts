/** The reactor: the one way to the operating system for everything on the data path.
 *
 *  A reactor belongs to one thread. Drivers: `uring` (Linux io_uring), `portable` (node:fs and
 *  node:net), and a simulated one for tests. All of them pass one contract suite.
 *
 *  Contract:
 *  - All data lives in the reactor's arena and is named by its place `at` in it (bytes).
 *  - Every operation ends exactly once, by `completion.complete(result)`, never before the call
 *    that started it has returned. `result` is what the system call would return: a count or
 *    0, or a negative errno. Short reads and writes of files are reported as they are.
 *  - The completion object is the caller's; starting an operation allocates nothing.
 *  - Between two completions nothing else runs on the thread.
 *  - Promise-based methods are for slow paths. */

import type { Arena } from './arena.ts';
import type { Segments } from './segments.ts';
import type { SlabPool } from './slab-pool.ts';

/** What an operation reports its end to. */
export interface Completion {
  complete(result: number): void;
}

/** fallocate modes (linux/falloc.h). */
export const ALLOCATE_RESERVE = 0;
export const ALLOCATE_KEEP_SIZE = 1;
export const ALLOCATE_PUNCH_HOLE = 3; // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
export const ALLOCATE_ZERO_RANGE = 17; // FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
export type AllocateMode =
  | typeof ALLOCATE_RESERVE
  | typeof ALLOCATE_KEEP_SIZE
  | typeof ALLOCATE_PUNCH_HOLE
  | typeof ALLOCATE_ZERO_RANGE;

export type SocketAddress =
  | { readonly kind: 'unix'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number };

/** One end of a connected socket or pipe pair. One receive and one send may be under way at once. */
export interface Stream {
  /** Receives 1 to `length` bytes into the arena. Ends with their count, 0 at the end of the
   *  stream, or -errno (-ECANCELED after close). */
  receive(at: number, length: number, completion: Completion): void;
  /** As receive, but ends only when all `length` bytes are there, or with 0 when the stream ended first. */
  receiveAll(at: number, length: number, completion: Completion): void;
  /** Adds arena memory to the next send. False when the send's list is full (nothing was added):
   *  send first. May be called while a send is under way. */
  queue(at: number, length: number): boolean;
  /** Sends all that was queued, in order; ends with the number of bytes, or -errno.
   *  The memory must stay untouched until then. Must not be called with nothing queued or while a send is under way. */
  send(completion: Completion): void;
  /** Ends both directions and gives the descriptor back. Operations under way end with -ECANCELED
   *  or another error. Safe to call twice. */
  close(): void;
  /** Gives a socket's descriptor up, open, for another reactor to adopt; the stream is as closed. No operation may
   *  be under way and nothing queued. -1, and nothing happens, where the driver cannot: portable. */
  release(): number;
  /** The user at the other end of a unix socket; -1 where the system does not tell. */
  peerUid(): number;
}

/** A TCP peer that has said nothing for so long is asked whether it is still there. Who does not answer is gone after a
 *  minute more: operations under way end with -ETIMEDOUT. */
export const KEEPALIVE_IDLE_S = 60;

export interface Listener {
  /** The address bound, with the port that the system chose for port 0. */
  readonly address: SocketAddress;
  /** Stops accepting; removes the socket file of a unix address. Safe to call twice. */
  close(): void;
}

export interface ListenOptions {
  /** Mode of a unix socket's file; default 0o600. */
  readonly mode?: number;
}

export interface Reactor {
  readonly driver: 'uring' | 'portable' | 'sim';
  readonly arena: Arena;
  /** Places in the arena's memory beside those that it lends. Empty unless the reactor was opened with some. */
  readonly slabs: SlabPool;

  read(fd: number, at: number, length: number, offset: number, completion: Completion): void;
  /** Writes; with `durable`, the data is on stable storage at the end (RWF_DSYNC). */
  write(fd: number, at: number, length: number, offset: number, durable: boolean, completion: Completion): void;
  /** As read, write and writeGather, for a file whose data is normally in memory (the page cache, tmpfs): a driver may
   *  run them at once, on this thread, as long as that turns out to be quick. */
  readCached(fd: number, at: number, length: number, offset: number, completion: Completion): void;
  writeCached(fd: number, at: number, length: number, offset: number, completion: Completion): void;
  /** As read, for a file whose data may be in the page cache: a driver may read what is there at once, on this thread; what is
   *  not there is never waited for on it. Says whether that is worth asking for again, of this file. */
  readIfCached(fd: number, at: number, length: number, offset: number, completion: Completion): boolean;
  writeGatherCached(fd: number, segments: Float64Array, count: number, offset: number, completion: Completion): void;
  /** Gathers `count` segments into one write. `segments` holds pairs of (at, length), and must stay
   *  untouched until the end. At most IOV_MAX (1024) segments. */
  writeGather(fd: number, segments: Float64Array, count: number, offset: number, completion: Completion): void;
  /** Scatters one read over segments, as writeGather gathers them; with `cached`, as readCached. */
  readScatter(fd: number, to: Segments, offset: number, cached: boolean, completion: Completion): void;
  /** fdatasync. */
  sync(fd: number, completion: Completion): void;
  /** Has the system begin to write cached data of the range back, so that a sync has less to wait for; nothing is promised, and
   *  drivers may do nothing. Ends with 0, or -errno. */
  beginWriteback(fd: number, offset: number, length: number, completion: Completion): void;
  /** Whether cached data of the file could not be written back since it was opened: 0, or -errno, which is told once. Data
   *  that is read afterwards may not be what was written. At once; always 0 where the platform does not tell. */
  writebackError(fd: number): number;
  /** fallocate; ends with -EOPNOTSUPP where the file system or platform cannot. */
  allocate(fd: number, mode: AllocateMode, offset: number, length: number, completion: Completion): void;
  /** Closes a file, but not on this thread: freeing what only its descriptor holds may take the file system long. */
  closeFile(fd: number, completion: Completion): void;
  /** A command to the driver of the device behind `fd`: its code and 16 bytes of argument, which are copied. It may wait
   *  for the outside as long as it likes, so it does not count as under way; at `close` it is given up, and never
   *  ends. Ends with -EOPNOTSUPP where the device, the kernel or this driver knows no commands. */
  command(fd: number, code: number, argument: Uint32Array, completion: Completion): void;

  /** Milliseconds of a monotonic clock, as of the last turn of the loop. */
  now(): number;
  /** Calls `completion.complete(0)` after `delayMs`. Returns a handle for cancel. */
  timer(delayMs: number, completion: Completion): number;
  /** A cancelled timer's completion is never called. Cancelling an ended timer does nothing. */
  cancelTimer(handle: number): void;
  /** Calls `hook` at the end of every turn that completed something, before the loop sleeps:
   *  the place to send what the turn gathered. */
  onTurnEnd(hook: () => void): void;

  /** Errors: EADDRINUSE, EACCES, … as BlksnapError. The stream is the callee's to close. */
  listen(address: SocketAddress, options: ListenOptions, onStream: (stream: Stream) => void): Promise<Listener>;
  /** Accepts on a listening socket that was handed to the process (socket activation). */
  listenFd(fd: number, onStream: (stream: Stream) => void): Promise<Listener>;
  connect(address: SocketAddress): Promise<Stream>;
  /** Takes over connected descriptors: one socket (same number twice), or a pipe pair such as stdin and stdout. */
  adopt(readFd: number, writeFd: number): Stream;

  /** Hears messages of a MessagePort (a worker's parentPort, say) in turn with completions.
   *  The sender wakes the loop after each post as the returned Notifier says. */
  onMessages(port: MessagePortLike, handler: (message: unknown) => void): Notifier;

  /** Number of operations under way; 0 when idle. */
  readonly inFlight: number;
  /** Ends the loop. Everything opened through the reactor must be closed first (an assertion tells what is not). */
  close(): Promise<void>;
}

/** How another thread wakes a reactor after it posted a message: by writing 8 bytes (a
 *  little-endian 1) to `wakeFd`, unless it is -1 and posting alone is enough. */
export interface Notifier {
  readonly wakeFd: number;
  close(): void;
}

export interface MessagePortLike {
  on(event: 'message', handler: (message: unknown) => void): unknown;
  off(event: 'message', handler: (message: unknown) => void): unknown;
}

/** Awaits one operation: `await completed((c) => reactor.sync(fd, c))`. Resolves with the result
 *  (never rejects: negative is -errno). Slow paths only. */
export function completed(start: (completion: Completion) => void): Promise<number> {
  return new Promise((resolve) => start({ complete: resolve }));
}
