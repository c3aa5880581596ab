/** The simulated driver of the reactor contract: virtual time, virtual files, virtual sockets, and faults, all from one
 *  seed. A reactor is a process of the machine whose time is the clock's.
 *
 *  An operation takes effect some time between its start and its end, at once or in two steps, and operations that
 *  are under way together end in any order. What does not exist is real: time, data, sockets. */

import { Arena } from '../../src/io/arena.ts';
import {
  ALLOCATE_KEEP_SIZE,
  ALLOCATE_PUNCH_HOLE,
  ALLOCATE_RESERVE,
  ALLOCATE_ZERO_RANGE,
} from '../../src/io/reactor.ts';
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
} from '../../src/io/reactor.ts';
import { closeSync } from 'node:fs';
import { assert } from '../../src/util/assert.ts';
import { BlksnapError, ERRNO } from '../../src/util/errors.ts';
import { lengthOf } from '../../src/io/segments.ts';
import type { Segments } from '../../src/io/segments.ts';
import { SlabPool } from '../../src/io/slab-pool.ts';
import type { Prng } from '../../src/util/prng.ts';
import type { SimClock, SimProcess } from './clock.ts';
import type { Event } from './events.ts';
import { realFile } from './real-file.ts';
import { streamPair } from './stream.ts';
import type { SimStream, StreamWorld } from './stream.ts';
import type { VirtualFile } from './virtual-file.ts';
import type { Weather } from './weather.ts';

type Fault = {
  [Name in keyof Weather]: Weather[Name] extends number ? Name : never;
}[keyof Weather];

/** What an operation works on. */
export interface SimFile {
  readonly place: 'origin' | 'storage' | 'backup';
  readonly size: number;
  /** What is written to it tells the real time, in as many digits as that has. */
  readonly tellsTime?: boolean;
  /** Faults that struck it. */
  readonly faults: Record<Operation['kind'], number>;
  read(offset: number, into: Uint8Array): void;
  /** The count written. */
  write(offset: number, from: Uint8Array): number;
  clear(offset: number, length: number, punch: boolean): void;
  reserve(offset: number, length: number): boolean;
  sync(): void;
  syncRange(offset: number, length: number): void;
  /** Whether what is written may fail later, on its way from the page cache. */
  readonly writtenBack: boolean;
  doom(offset: number, length: number): void;
  failWriteback(): void;
  /** Whether it has, and `fd` was not told. */
  tellWriteback(fd: number): boolean;
  /** A sync failed. */
  loseUnsynced(random: Prng): void;
  /** Whether the range cannot be read, now and later. */
  isBad(offset: number, length: number): boolean;
}

/** The longest that data waits in the page cache. */
const WRITEBACK_US = 200_000;

const FAULTS: Record<SimFile['place'], Record<Operation['kind'], Fault>> = {
  origin: { read: 'originReadError', write: 'originWriteError', allocate: 'originWriteError', sync: 'syncError' },
  storage: { read: 'storageReadError', write: 'storageWriteError', allocate: 'storageWriteError', sync: 'syncError' },
  backup: { read: 'backupReadError', write: 'backupWriteError', allocate: 'backupWriteError', sync: 'backupSyncError' },
};

/** A file operation: what it does at its effect, and what kind of fault may strike it. */
interface Operation {
  readonly kind: 'read' | 'write' | 'sync' | 'allocate';
  readonly offset: number;
  readonly length: number;
  /** Does a part of it; the result of the last part is the operation's. */
  readonly effect: (file: SimFile, from: number, to: number) => number;
}

export interface SimReactorOptions {
  readonly clock: SimClock;
  readonly weather: Weather;
  readonly arenaBytes: number;
  /** Memory for storage; default 0. */
  readonly slabBytes?: number;
}

export class SimReactor implements Reactor, StreamWorld, SimProcess {
  readonly driver = 'sim';
  readonly arena: Arena;
  readonly slabs: SlabPool;
  readonly clock: SimClock;
  readonly #weather: Weather;
  readonly #files = new Map<number, SimFile>();
  readonly #timers = new Map<number, Event>();
  readonly #hooks: Array<() => void> = [];
  readonly #streams = new Set<SimStream>();
  #lastTimer = 0;
  #inFlight = 0;
  #dead = false;
  #completed = false;

  constructor({ clock, weather, arenaBytes, slabBytes = 0 }: SimReactorOptions) {
    this.clock = clock;
    this.#weather = weather;
    const bytes = arenaBytes + slabBytes;
    const spare = clock.spareMemory.findIndex((memory) => memory.byteLength === bytes);
    const memory = spare < 0 ? new ArrayBuffer(bytes) : clock.spareMemory.splice(spare, 1)[0]!;
    this.arena = new Arena(memory, 0, { at: 0, length: arenaBytes });
    // Whoever still looks at what was given back shall find nothing of use.
    const discard = (at: number, length: number): void => void this.arena.bytes.fill(0x5b, at, at + length);
    this.slabs = new SlabPool({ enable: () => true, discard }, arenaBytes, bytes);
    clock.processes.add(this);
  }

  get random(): Prng {
    return this.clock.random;
  }

  // --- the process ----------------------------------------------------------------------------

  until<T>(promise: Promise<T>): Promise<T> {
    return this.clock.until(promise);
  }

  settle(): Promise<void> {
    return this.clock.settle();
  }

  turn(): Promise<boolean> {
    return this.clock.turn();
  }

  turnEnded(): void {
    if (!this.#completed) return;
    this.#completed = false;
    for (const hook of this.#hooks) hook();
  }

  /** The process is gone: nothing ends any more. What was under way may still have happened, or not. */
  die(): void {
    if (this.#dead) return;
    this.#dead = true;
    this.clock.abandon(this);
    for (const stream of this.#streams) stream.close();
    this.clock.abandon(this);
    this.clock.spareMemory.push(this.arena.bytes.buffer);
  }

  after(delayUs: number, run: () => void): Event {
    return this.clock.after(this, delayUs, run);
  }

  note(...values: readonly number[]): void {
    this.clock.note(...values);
  }

  /** `traced`: what two runs must have in common of the result. */
  end(completion: Completion, result: number, traced = result): void {
    this.#inFlight--;
    if (this.#dead) return;
    this.#completed = true;
    this.note(this.clock.nowUs, traced);
    completion.complete(result);
  }

  started(): void {
    this.#inFlight++;
  }

  // --- files ----------------------------------------------------------------------------------

  /** Gives a virtual file a descriptor. */
  openFile(file: VirtualFile): number {
    const fd = file.open();
    this.#files.set(fd, file);
    return fd;
  }

  read(fd: number, at: number, length: number, offset: number, completion: Completion): void {
    const effect = (file: SimFile, from: number, to: number): number => {
      const end = Math.min(offset + to, file.size);
      if (end > offset + from) file.read(offset + from, this.arena.bytes.subarray(at + from, at + end - offset));
      return Math.max(0, end - offset);
    };
    this.#start(fd, { kind: 'read', offset, length, effect }, completion);
  }

  write(fd: number, at: number, length: number, offset: number, durable: boolean, completion: Completion): void {
    const effect = (file: SimFile, from: number, to: number): number => {
      const done = file.write(offset + from, this.arena.bytes.subarray(at + from, at + to));
      if (!durable) this.#mayDoom(file, offset + from, done);
      if (durable) file.syncRange(offset + from, done);
      if (from + done > 0 || from === to) return from + done;
      // What is full is no fault of the medium, and nothing is lost: but it excuses a write that fails.
      file.faults.allocate++;
      return -ERRNO.ENOSPC;
    };
    this.#start(fd, { kind: 'write', offset, length, effect }, completion);
  }

  readCached(fd: number, at: number, length: number, offset: number, completion: Completion): void {
    this.read(fd, at, length, offset, completion);
  }

  readIfCached(fd: number, at: number, length: number, offset: number, completion: Completion): boolean {
    this.read(fd, at, length, offset, completion);
    return true;
  }

  writeCached(fd: number, at: number, length: number, offset: number, completion: Completion): void {
    this.write(fd, at, length, offset, false, completion);
  }

  writeGatherCached(fd: number, segments: Float64Array, count: number, offset: number, completion: Completion): void {
    this.writeGather(fd, segments, count, offset, completion);
  }

  readScatter(
    fd: number,
    { segments, count }: Segments,
    offset: number,
    _cached: boolean,
    completion: Completion,
  ): void {
    const length = lengthOf(segments, count);
    const effect = (file: SimFile, from: number, to: number): number => {
      const data = new Uint8Array(Math.max(0, Math.min(offset + to, file.size) - offset - from));
      file.read(offset + from, data);
      for (let i = 0, place = 0; i < count; i++) {
        const bytes = segments[i * 2 + 1]!;
        const [first, end] = [Math.max(place, from), Math.min(place + bytes, from + data.length)];
        if (first < end)
          this.arena.bytes.set(data.subarray(first - from, end - from), segments[i * 2]! + first - place);
        place += bytes;
      }
      return Math.max(0, Math.min(offset + to, file.size) - offset);
    };
    this.#start(fd, { kind: 'read', offset, length, effect }, completion);
  }

  writeGather(fd: number, segments: Float64Array, count: number, offset: number, completion: Completion): void {
    const length = lengthOf(segments, count);
    const effect = (file: SimFile, from: number, to: number): number => {
      const gathered = new Uint8Array(length);
      for (let i = 0, place = 0; i < count; i++) {
        const at = segments[i * 2]!;
        gathered.set(this.arena.bytes.subarray(at, at + segments[i * 2 + 1]!), place);
        place += segments[i * 2 + 1]!;
      }
      const done = file.write(offset + from, gathered.subarray(from, to));
      this.#mayDoom(file, offset + from, done);
      return from + done === 0 ? -ERRNO.ENOSPC : from + done;
    };
    this.#start(fd, { kind: 'write', offset, length, effect }, completion);
  }

  sync(fd: number, completion: Completion): void {
    const effect = (file: SimFile): number => {
      file.sync();
      return file.tellWriteback(fd) ? -ERRNO.EIO : 0;
    };
    this.#start(fd, { kind: 'sync', offset: 0, length: 0, effect }, completion);
  }

  beginWriteback(_fd: number, _offset: number, _length: number, completion: Completion): void {
    this.started();
    this.after(1, () => this.end(completion, 0));
  }

  writebackError(fd: number): number {
    return this.#files.get(fd)?.tellWriteback(fd) === true ? -ERRNO.EIO : 0;
  }

  /** Whether what was just written fails when it is written back, some time later. */
  #mayDoom(file: SimFile, offset: number, length: number): void {
    if (!file.writtenBack || this.clock.calm > 0 || this.#weather.writebackError === 0) return;
    if (!this.#strikes('writebackError')) return;
    file.doom(offset, length);
    this.clock.after(null, this.random.below(WRITEBACK_US), () => file.failWriteback());
  }

  allocate(fd: number, mode: AllocateMode, offset: number, length: number, completion: Completion): void {
    const effect = (file: SimFile): number => {
      switch (mode) {
        case ALLOCATE_PUNCH_HOLE:
        case ALLOCATE_ZERO_RANGE:
          file.clear(offset, length, mode === ALLOCATE_PUNCH_HOLE);
          return 0;
        case ALLOCATE_RESERVE:
          return file.reserve(offset, length) ? 0 : -ERRNO.ENOSPC;
        case ALLOCATE_KEEP_SIZE:
          return -ERRNO.EOPNOTSUPP;
      }
    };
    this.#start(fd, { kind: 'allocate', offset, length, effect }, completion);
  }

  closeFile(fd: number, completion: Completion): void {
    this.started();
    closeSync(fd);
    this.after(1, () => this.end(completion, 0));
  }

  command(_fd: number, _code: number, _argument: Uint32Array, completion: Completion): void {
    this.started();
    this.after(1, () => this.end(completion, -ERRNO.EOPNOTSUPP));
  }

  #start(fd: number, operation: Operation, completion: Completion): void {
    this.started();
    // A virtual file's number may have been given to a real one since it was closed.
    const file = realFile(fd) ?? this.#files.get(fd);
    if (file === undefined) {
      this.after(1, () => this.end(completion, -ERRNO.EBADF));
      return;
    }
    const totalUs = this.#duration(file);
    const fault = this.clock.calm === 0 ? this.#fault(file, operation) : 0;
    let { length } = operation;
    const { kind } = operation;
    const isTransfer = kind === 'read' || kind === 'write';
    if (fault < 0) length = isTransfer ? this.random.below(length) : 0;
    else if (this.clock.calm === 0 && file.place !== 'storage' && isTransfer && this.#strikes('shortIo'))
      length = 1 + this.random.below(length);
    if (fault < 0 && kind === 'sync') {
      this.after(totalUs, () => {
        if (fault === -ERRNO.EIO) file.loseUnsynced(this.random);
        this.end(completion, fault);
      });
      return;
    }
    if (fault < 0 && (kind === 'allocate' || length === 0)) {
      this.after(totalUs, () => this.end(completion, fault));
      return;
    }
    this.#schedule(file, { ...operation, length }, totalUs, (result) =>
      this.end(completion, fault < 0 ? fault : result, 'tellsTime' in file && file.tellsTime ? fault : result),
    );
  }

  #schedule(file: SimFile, operation: Operation, totalUs: number, done: (result: number) => void): void {
    const { kind, length, effect } = operation;
    const inParts = (kind === 'read' || kind === 'write') && length > 1 && this.#strikes('torn');
    const middle = inParts ? 1 + this.random.below(length - 1) : 0;
    const firstUs = this.random.below(totalUs + 1);
    const secondUs = firstUs + this.random.below(totalUs + 1 - firstUs);
    const finish = (): void => {
      const result = effect(file, middle, length);
      this.after(totalUs - secondUs, () => done(result));
    };
    if (!inParts) {
      this.after(secondUs, finish);
      return;
    }
    this.after(firstUs, () => {
      const result = effect(file, 0, middle);
      if (result === middle) this.after(secondUs - firstUs, finish);
      else this.after(totalUs - firstUs, () => done(result));
    });
  }

  #duration(file: SimFile): number {
    const { originSlowUs, storageSlowUs } = this.#weather;
    const us = 1 + this.random.below(file.place === 'origin' ? originSlowUs : storageSlowUs);
    return this.#strikes('stall') ? us * 100 : us;
  }

  /** The errno that an operation is to end with, or 0. */
  #fault(file: SimFile, { kind, offset, length }: Operation): number {
    if (file.place === 'origin' && this.#strikes('interrupted')) return -ERRNO.EINTR;
    const bad = kind === 'read' && file.isBad(offset, length);
    if (!bad && !this.#strikes(FAULTS[file.place][kind])) return 0;
    file.faults[kind]++;
    return file.place === 'backup' && kind === 'write' ? -ERRNO.ENOSPC : -ERRNO.EIO;
  }

  #strikes(what: Fault): boolean {
    return this.random.chance(this.#weather[what]);
  }

  // --- time, hooks, messages ------------------------------------------------------------------

  now(): number {
    return this.clock.nowUs / 1000;
  }

  timer(delayMs: number, completion: Completion): number {
    const handle = ++this.#lastTimer;
    const fire = (): void => {
      this.#timers.delete(handle);
      if (this.#dead) return;
      this.#completed = true;
      this.note(this.clock.nowUs, handle);
      completion.complete(0);
    };
    this.#timers.set(handle, this.after(delayMs * 1000, fire));
    return handle;
  }

  cancelTimer(handle: number): void {
    const event = this.#timers.get(handle);
    if (event !== undefined) event.cancelled = true;
    this.#timers.delete(handle);
  }

  onTurnEnd(hook: () => void): void {
    this.#hooks.push(hook);
  }

  onMessages(port: MessagePortLike, handler: (message: unknown) => void): Notifier {
    const listener = (message: unknown): void => void this.after(0, () => handler(message));
    port.on('message', listener);
    return { wakeFd: -1, close: () => void port.off('message', listener) };
  }

  // --- sockets --------------------------------------------------------------------------------

  async listen(address: SocketAddress, _options: ListenOptions, onStream: (stream: Stream) => void): Promise<Listener> {
    const key = JSON.stringify(address);
    const { listeners } = this.clock;
    if (listeners.has(key)) throw new BlksnapError('EADDRINUSE', `Cannot listen on ${key}: it is in use`);
    const accept = (peer: SimReactor): SimStream => {
      const [theirs, ours] = streamPair(peer, this);
      this.#streams.add(ours);
      onStream(ours);
      return theirs;
    };
    listeners.set(key, { process: this, accept });
    return { address, close: () => void listeners.delete(key) };
  }

  listenFd(): Promise<Listener> {
    return Promise.reject(new BlksnapError('EOPNOTSUPP', 'Cannot listen on a descriptor: the simulator has none'));
  }

  connect(address: SocketAddress): Promise<Stream> {
    const key = JSON.stringify(address);
    return new Promise((resolve, reject) => {
      this.after(this.random.below(200), () => {
        if (this.#dead) return;
        const listener = this.clock.listeners.get(key);
        if (listener === undefined) {
          reject(new BlksnapError('ECONNREFUSED', `Cannot connect to ${key}: nobody listens`));
          return;
        }
        const stream = listener.accept(this);
        this.#streams.add(stream);
        resolve(stream);
      });
    });
  }

  adopt(): Stream {
    throw new BlksnapError('EOPNOTSUPP', 'Cannot adopt descriptors: the simulator has none');
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  async close(): Promise<void> {
    if (this.#dead) return;
    await this.settle();
    this.leave();
  }

  /** The process ends in order, while others go on. */
  leave(): void {
    assert(this.#inFlight === 0, 'everything opened through the reactor was closed');
    this.#dead = true;
    this.clock.remove(this);
    this.clock.spareMemory.push(this.arena.bytes.buffer);
  }
}
