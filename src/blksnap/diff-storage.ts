/** Diff storage: where one snapshot keeps saved chunks, as a log of chunk-sized positions.
 *
 *  A new file, an unnamed file in a directory, an empty kernel device, or memory. Space is reserved
 *  in portions ahead of need, up to the limit; it goes back when the storage closes, and by hole
 *  punching before. Stores of one turn of the reactor leave in one gathering write.
 *
 *  Never fails an origin: it reports, and the diff area decides. Knows nothing of devices. */

import fs from 'node:fs';
import { assert } from '../util/assert.ts';
import { BlksnapError, ERRNO, toBlksnapError } from '../util/errors.ts';
import { MIB, alignDown } from '../util/units.ts';
import { ALLOCATE_PUNCH_HOLE, ALLOCATE_RESERVE, completed } from '../io/reactor.ts';
import type { Completion, Reactor } from '../io/reactor.ts';
import { memoryFile } from '../io/sys.ts';
import { CHUNK, MAX_POSITION } from './chunk-table.ts';

/** Reserved at a time. */
const PORTION = 256 * MIB;
const SMALLEST_PORTION = 1 * MIB;
/** Segments of one gathering write (IOV_MAX), and how many bytes make it worth sending at once. */
const MAX_SEGMENTS = 1024;
const FLUSH_BYTES = 2 * MIB;
const TMPFS_MAGIC = 0x01021994;
/** `storage` value for chunks kept in memory. */
export const MEMORY_STORAGE = ':memory:';

export interface DiffStorageOptions {
  /** A directory, a file that does not exist yet or is empty, a kernel device, or MEMORY_STORAGE. */
  readonly path: string;
  /** Bytes; Infinity for as much as the place holds. */
  readonly limitBytes: number;
}

/** Who hears that stored memory may be given back. `status` is 0 or an errno. */
export interface Stored {
  stored(status: number): void;
}

export interface StorageListener {
  /** Free space fell under half a portion and cannot grow. Told once. */
  lowSpace(storage: DiffStorage): void;
}

/** A gathering write of contiguous positions. */
class Batch implements Completion {
  /** Pairs of (arena place, bytes). */
  readonly segments = new Float64Array(MAX_SEGMENTS * 2);
  readonly runs: Stored[] = [];
  count = 0;
  bytes = 0;
  position = 0;
  readonly #storage: DiffStorage;

  constructor(storage: DiffStorage) {
    this.#storage = storage;
  }

  complete(result: number): void {
    this.#storage.batchEnded(this, result === this.bytes ? 0 : result < 0 ? -result : ERRNO.ENOSPC);
  }
}

export class DiffStorage {
  readonly fd: number;
  readonly path: string;
  readonly limitBytes: number;
  readonly #reactor: Reactor;
  readonly #listener: StorageListener;
  /** Space is reserved by fallocate; elsewhere writing takes it. */
  readonly #reserves: boolean;
  /** A file of ours with a name, removed at the end. */
  readonly #owned: string | null;
  readonly #limit: number;
  /** Chunks reserved so far, and the first position never given out. */
  #reserved = 0;
  #next = 0;
  #reserving = false;
  #full = false;
  #toldLow = false;
  #freed = 0;
  #batch: Batch | null = null;
  readonly #spareBatches: Batch[] = [];
  #writing = 0;
  #closing = false;

  /** Errors: ENOENT, EACCES, EEXIST (a file with content), EBUSY (a device in use), EINVAL, ENOSPC. */
  static async open(reactor: Reactor, options: DiffStorageOptions, listener: StorageListener): Promise<DiffStorage> {
    const action = `Cannot use "${options.path}" as diff storage`;
    if (options.limitBytes < CHUNK) throw new BlksnapError('EINVAL', `${action}: limit ${options.limitBytes} bytes, want at least ${CHUNK}`);
    const opened = openStorage(options.path, action);
    const storage = new DiffStorage(reactor, options, opened, listener);
    if (storage.#reserves) {
      const status = await storage.#reserve();
      if (status !== 0) {
        await storage.close();
        throw new BlksnapError('ENOSPC', `${action}: no room for the first ${storage.#portionBytes()} bytes; free some, or set a lower limit`);
      }
    }
    return storage;
  }

  private constructor(reactor: Reactor, options: DiffStorageOptions, opened: OpenedStorage, listener: StorageListener) {
    this.#reactor = reactor;
    this.#listener = listener;
    this.path = options.path;
    this.fd = opened.fd;
    this.#owned = opened.owned;
    this.#reserves = opened.reserves;
    this.limitBytes = Math.min(options.limitBytes, opened.sizeBytes, MAX_POSITION * CHUNK);
    this.#limit = Math.floor(this.limitBytes / CHUNK);
  }

  get usedBytes(): number {
    return (this.#next - this.#freed) * CHUNK;
  }

  get reservedBytes(): number {
    return Math.max(this.#reserved, this.#next) * CHUNK;
  }

  // --- giving out space -----------------------------------------------------------------------

  /** Gives out `count` positions in a row and returns the first, or -1 when there is no room for them. */
  allocate(count: number): number {
    const position = this.#next;
    const end = position + count;
    if (end > this.#limit || (this.#full && end > this.#reserved)) return -1;
    this.#next = end;
    this.#growAhead();
    return position;
  }

  #growAhead(): void {
    const half = this.#portionBytes() / 2 / CHUNK;
    const canGrow = this.#reserves && !this.#full && this.#reserved < this.#limit;
    if (canGrow) {
      if (!this.#reserving && this.#reserved - this.#next < half) void this.#reserve();
    } else if (!this.#toldLow && (this.#full ? this.#reserved : this.#limit) - this.#next < half) {
      this.#tellLow();
    }
  }

  /** A portion, smaller where the limit is small: half of it must still be a warning. */
  #portionBytes(): number {
    return Math.max(CHUNK, Math.min(PORTION, alignDown(this.limitBytes / 4, CHUNK)));
  }

  /** Reserves the next portion, or what still fits of it. 0, or an errno when nothing more fits. */
  async #reserve(): Promise<number> {
    this.#reserving = true;
    const from = Math.max(this.#reserved, this.#next);
    let count = Math.min(this.#portionBytes() / CHUNK, this.#limit - from);
    let result = 0;
    for (; count > 0; count = Math.floor(count / 4)) {
      const length = count * CHUNK;
      result = await completed((c) => this.#reactor.allocate(this.fd, ALLOCATE_RESERVE, from * CHUNK, length, c));
      if (result !== -ERRNO.ENOSPC || length < SMALLEST_PORTION) break;
    }
    this.#reserving = false;
    if (result === -ERRNO.EOPNOTSUPP) return 0;
    if (result < 0) {
      this.#full = true;
      this.#tellLow();
      return -result;
    }
    this.#reserved = Math.max(this.#reserved, from + count);
    return 0;
  }

  #tellLow(): void {
    if (this.#toldLow) return;
    this.#toldLow = true;
    this.#listener.lowSpace(this);
  }

  /** Gives space back to the file system. Best effort: a storage that cannot punch keeps it until it closes. */
  punch(position: number, count: number): void {
    this.#freed += count;
    this.#writing++;
    this.#reactor.allocate(this.fd, ALLOCATE_PUNCH_HOLE, position * CHUNK, count * CHUNK, {
      complete: () => {
        this.#writing--;
      },
    });
  }

  // --- storing --------------------------------------------------------------------------------

  /** Adds a segment of arena memory for `position`, to be written at the end of the turn.
   *  `run`, if given, hears of the end of the batch that the segment is in. */
  append(position: number, at: number, bytes: number, run: Stored | null): void {
    let batch = this.#batch;
    if (
      batch !== null &&
      (batch.count === MAX_SEGMENTS || batch.bytes >= FLUSH_BYTES || batch.position + batch.bytes / CHUNK !== position)
    ) {
      this.flush();
      batch = null;
    }
    if (batch === null) {
      batch = this.#batch = this.#spareBatches.pop() ?? new Batch(this);
      batch.position = position;
    }
    const last = (batch.count - 1) * 2;
    if (last >= 0 && batch.segments[last]! + batch.segments[last + 1]! === at) {
      batch.segments[last + 1]! += bytes;
    } else {
      batch.segments[batch.count * 2] = at;
      batch.segments[batch.count * 2 + 1] = bytes;
      batch.count++;
    }
    batch.bytes += bytes;
    if (run !== null) batch.runs.push(run);
  }

  /** Sends what was appended. Called at the end of every turn. */
  flush(): void {
    const batch = this.#batch;
    if (batch === null) return;
    this.#batch = null;
    this.#writing++;
    const offset = batch.position * CHUNK;
    if (batch.count === 1) this.#reactor.write(this.fd, batch.segments[0]!, batch.bytes, offset, false, batch);
    else this.#reactor.writeGather(this.fd, batch.segments, batch.count, offset, batch);
  }

  batchEnded(batch: Batch, status: number): void {
    this.#writing--;
    for (const run of batch.runs) run.stored(status);
    batch.runs.length = 0;
    batch.count = 0;
    batch.bytes = 0;
    this.#spareBatches.push(batch);
  }

  // --------------------------------------------------------------------------------------------

  /** Waits for writes under way and frees all space. Safe to call twice. */
  async close(): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    this.flush();
    while (this.#writing > 0 || this.#reserving) await completed((c) => void this.#reactor.timer(1, c));
    assert(this.#batch === null, 'nothing is appended to a closing storage');
    fs.closeSync(this.fd);
    if (this.#owned !== null) fs.rmSync(this.#owned, { force: true });
  }
}

interface OpenedStorage {
  readonly fd: number;
  readonly owned: string | null;
  readonly reserves: boolean;
  readonly sizeBytes: number;
}

const { O_RDWR, O_CREAT, O_EXCL } = fs.constants;
/** __O_TMPFILE | O_DIRECTORY. */
const O_TMPFILE = 0x400000 | fs.constants.O_DIRECTORY;

function openStorage(path: string, action: string): OpenedStorage {
  if (path === MEMORY_STORAGE) {
    return { fd: memoryFile('blksnap-diff'), owned: null, reserves: false, sizeBytes: Infinity };
  }
  try {
    const stat = fs.statSync(path, { throwIfNoEntry: false });
    if (stat?.isBlockDevice()) return openStorageDevice(path);
    if (stat?.isDirectory()) {
      return { fd: openUnnamed(path), owned: null, reserves: !onTmpfs(path), sizeBytes: Infinity };
    }
    if (stat !== undefined && (!stat.isFile() || stat.size > 0)) {
      throw new BlksnapError('EEXIST', `${action}: it has content; name a new file, an empty one, or a directory`);
    }
    const fd = fs.openSync(path, O_RDWR | (stat === undefined ? O_CREAT | O_EXCL : 0), 0o600);
    return { fd, owned: stat === undefined ? path : null, reserves: !onTmpfs(path), sizeBytes: Infinity };
  } catch (cause) {
    throw cause instanceof BlksnapError ? cause : toBlksnapError(cause, action);
  }
}

function openStorageDevice(path: string): OpenedStorage {
  const fd = fs.openSync(path, O_RDWR | O_EXCL);
  const sectors = fs.readFileSync(`/sys/class/block/${fs.realpathSync(path).split('/').at(-1)}/size`, 'utf8');
  return { fd, owned: null, reserves: false, sizeBytes: Number(sectors) * 512 };
}

/** A file without a name, gone with its descriptor. */
function openUnnamed(directory: string): number {
  try {
    return fs.openSync(directory, O_TMPFILE | O_RDWR, 0o600);
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code;
    if (code !== 'EOPNOTSUPP' && code !== 'EISDIR' && code !== 'ENOTSUP') throw cause;
    const name = `${directory}/.blksnap-diff-${process.pid}-${Date.now()}`;
    const fd = fs.openSync(name, O_RDWR | O_CREAT | O_EXCL, 0o600);
    fs.unlinkSync(name);
    return fd;
  }
}

/** On tmpfs, reserving means zeroing memory: better left until it is needed. */
function onTmpfs(path: string): boolean {
  const existing = fs.existsSync(path) ? path : path.slice(0, path.lastIndexOf('/') + 1) || '.';
  return fs.statfsSync(existing).type === TMPFS_MAGIC;
}
