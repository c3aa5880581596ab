/** Changed-block tracking: one byte per tracking block, the number of the last snapshot period in
 *  which the block changed.
 *
 *  Invariants: 0 <= map[i] <= changeNumber <= 255; unknown always means full: whenever history is
 *  in doubt the map is zeroed and gets a new generation id, which tells every reader to start over.
 *
 *  The map is an mmap'ed file, so a killed process loses nothing: a mark is in the page cache before
 *  the write that it stands for is submitted. Without a path it lives in memory and dies with us.
 *
 *  File, little-endian: a header of 4096 bytes, then the map.
 *     0 magic "BLKSNCBT"   8 version u32        12 log2 of the block size u32
 *    16 device size u64   24 change number u32  28 clean u32 (1: detached in order; 2: so, but writes are not counted)
 *    32 generation id, 36 characters            72 boot id, 36 characters
 *   112 origin kind u32 (0 none, 1 file, 2 device, 3 device whose writes the kernel is told not to count)
 *   120 origin id u64    128 origin version u64 (both as of attach, then as of detach)
 *   136 time of the last mark f64 (ms since 1970)
 *   144 origin change u64 (as 120 and 128)    152 lost u32 (1: a sync has failed since the machine was started)
 *   160 64 times of marks f64 (as 136): the first of each 20 ms, of the last 64 in which there were marks
 *  1024 96 slots for persistent snapshots: kept-snapshots.ts
 *
 *  Does no I/O but its own file's; knows nothing of chunks. */

import crypto from 'node:crypto';
import fs from 'node:fs';
import { ALLOCATE_RESERVE } from '../io/reactor.ts';
import { fallocate, mapShared, syncMapping, unmap } from '../io/sys.ts';
import type { Mapping } from '../io/sys.ts';
import { ERRNO, errnoError, toBlksnapError } from '../util/errors.ts';
import { KeptSnapshots } from './kept-snapshots.ts';
import { MapCopy } from './map-copy.ts';
import { bootId, originIdentity } from './origin-identity.ts';
import type { OriginIdentity } from './origin-identity.ts';

const MAGIC = 'BLKSNCBT';
const VERSION = 2;
/** Version 1 had no slots: zeros, as a new map has. */
const OLDEST_VERSION = 1;
const HEADER = 4096;
const LAST_MARK = 136;
const LOST = 152;
const MARKS = 160;
const MARK_COUNT = 64;
const MARK_STEP_MS = 20;
const CLEAN = 1;
const CLEAN_UNCOUNTED = 2;
const MAX_NUMBER = 255;
const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
/** A write reaches the file soon after its mark, also when its process is killed in between; the file's clock
 *  goes in steps, and so may be behind. */
const KILL_SLACK_MS = 250;
const FILE_CLOCK_STEP_MS = 50;
/** How far marks may be ahead of the last write that got through. */
const MARKS_AHEAD_MS = 10_000;

/** Size rule of the kernel module: 64 KiB blocks, doubled until there are at most 2 Mi, never above 64 MiB. */
export interface TrackingLimits {
  readonly minShift: number;
  readonly maxShift: number;
  readonly maxCount: number;
}
export const TRACKING_LIMITS: TrackingLimits = { minShift: 16, maxShift: 26, maxCount: 2 * 1024 * 1024 };

export function trackingShift(deviceSize: number, limits: TrackingLimits = TRACKING_LIMITS): number {
  let shift = limits.minShift;
  while (shift < limits.maxShift && Math.ceil(deviceSize / 2 ** shift) > limits.maxCount) shift++;
  return shift;
}

export interface CbtMapOptions {
  /** The map's file, or null for a map in memory. */
  readonly path: string | null;
  readonly deviceSize: number;
  /** The origin's own path, to notice writes that did not pass us; null where there is none. */
  readonly originPath: string | null;
  /** Nobody else writes to the origin, a kernel device, for as long as it exists. */
  readonly originPrivate?: boolean;
  readonly limits?: TrackingLimits;
}

/** A mark in a hole of a file system that has become full would kill the process (SIGBUS). Errors: ENOSPC. */
function reserve(fd: number, length: number): void {
  const result = fallocate(fd, ALLOCATE_RESERVE, 0, length);
  if (result < 0 && result !== -ERRNO.EOPNOTSUPP) throw errnoError(-result, `Cannot reserve ${length} bytes`);
}

export class CbtMap {
  readonly deviceSize: number;
  readonly blockSize: number;
  readonly blockCount: number;
  /** Why this generation began; '' when history goes on from before. */
  reason: string;
  /** Why what was stored could not be trusted when the map was opened; '' when it could. */
  readonly doubt: string;
  /** One byte per tracking block. Shared memory where the map has a file. */
  readonly map: Uint8Array;
  readonly #fd: number;
  readonly #mapping: Mapping | null;
  readonly #header: DataView;
  readonly #originPath: string | null;
  #generationId = '';
  #changeNumber = 1;
  #lastMarkMs = -1;
  /** Of the last among the times of marks, and the place of the next. */
  #lastTimeMs = -Infinity;
  #nextTime = 0;
  #closed = false;
  /** Persistent snapshots that have a copy of all that was overwritten since their takes. */
  readonly kept: KeptSnapshots;
  /** Copies of takes that are under way. */
  readonly #copies: MapCopy[] = [];

  /** Opens the map of a device, with its history where that can be trusted. */
  static open(options: CbtMapOptions): CbtMap {
    const shift = trackingShift(options.deviceSize, options.limits);
    const length = HEADER + Math.ceil(options.deviceSize / 2 ** shift);
    if (options.path === null) return new CbtMap(options, shift, -1, null, 'the map is kept in memory only');
    let fd = -1;
    let doubt: string;
    let hasLost = false;
    try {
      const existed = fs.existsSync(options.path);
      fd = fs.openSync(options.path, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600);
      hasLost = existed && hasLostBefore(fd);
      doubt = existed ? doubtAbout(fd, length, shift, options) : 'tracking begins';
      if (doubt !== '') {
        fs.ftruncateSync(fd, 0);
        fs.ftruncateSync(fd, length);
      }
      reserve(fd, length);
    } catch (cause) {
      if (fd >= 0) fs.closeSync(fd);
      throw toBlksnapError(cause, `Cannot open change map "${options.path}"`);
    }
    const mapping = mapShared(fd, length, 0);
    if (typeof mapping === 'number') {
      fs.closeSync(fd);
      throw errnoError(-mapping, `Cannot map change map "${options.path}"`);
    }
    try {
      const map = new CbtMap(options, shift, fd, mapping, doubt);
      if (hasLost) map.noteLost();
      return map;
    } catch (cause) {
      unmap(mapping.address, length);
      fs.closeSync(fd);
      throw toBlksnapError(cause, `Cannot write change map "${options.path}"`);
    }
  }

  private constructor(options: CbtMapOptions, shift: number, fd: number, mapping: Mapping | null, doubt: string) {
    this.deviceSize = options.deviceSize;
    this.blockSize = 2 ** shift;
    this.blockCount = Math.ceil(options.deviceSize / this.blockSize);
    this.#fd = fd;
    this.#mapping = mapping;
    this.#originPath = options.originPath;
    const memory = mapping?.memory ?? new ArrayBuffer(HEADER + this.blockCount);
    this.#header = new DataView(memory, 0, HEADER);
    this.map = new Uint8Array(memory, HEADER, this.blockCount);
    this.reason = doubt;
    this.doubt = doubt;
    this.kept = new KeptSnapshots(this.#header, { inFile: mapping !== null, hasOthers: doubt === '' });
    if (doubt === '') {
      this.#generationId = text(this.#header, 32);
      this.#changeNumber = this.#header.getUint32(24, true);
    } else {
      this.renew(doubt);
    }
    this.#writeHeader(shift);
    // A machine that stops must not find the clean mark of the time before: our writes may outlive the new one.
    if (mapping !== null) syncMapping(mapping.address, HEADER);
  }

  get generationId(): string {
    return this.#generationId;
  }
  /** The number that changes are marked with now. */
  get changeNumber(): number {
    return this.#changeNumber;
  }

  /** Marks every block that the range touches, without a write of the origin. */
  markOnly(offset: number, length: number): void {
    const first = Math.floor(offset / this.blockSize);
    const last = Math.floor((offset + length - 1) / this.blockSize);
    for (let block = first; block <= last; block++) this.map[block] = this.#changeNumber;
    for (let i = 0; i < this.#copies.length; i++) this.#copies[i]!.note(first, last);
  }

  /** As markOnly, for a write of the origin that comes next. Hot path. */
  mark(offset: number, length: number, nowMs: number): void {
    this.markOnly(offset, length);
    if (nowMs !== this.#lastMarkMs) {
      this.#lastMarkMs = nowMs;
      this.touch();
      if (this.kept.hasOthers) this.kept.dropOthers();
    }
  }

  /** When a change was last marked, on the clock that `mark` was given. */
  get lastMarkMs(): number {
    return this.#lastMarkMs;
  }

  /** A write that was marked some time ago goes on only now. */
  touch(): void {
    const timeMs = Date.now();
    this.#header.setFloat64(LAST_MARK, timeMs, true);
    if (Math.abs(timeMs - this.#lastTimeMs) < MARK_STEP_MS) return;
    this.#header.setFloat64(MARKS + 8 * this.#nextTime, timeMs, true);
    this.#nextTime = (this.#nextTime + 1) % MARK_COUNT;
    this.#lastTimeMs = timeMs;
  }

  /** A sync has failed: the kernel has dropped what it could not write, so that the disk may change when the machine
   *  stops, also one that stops long after the device was let go in order by another process. */
  noteLost(): void {
    this.#header.setUint32(LOST, 1, true);
  }

  /** Ends a period at a take: later changes carry the next number. After 255 the history starts
   *  over, with a new generation. Must not fail: runs between freeze and thaw. */
  advance(): void {
    if (this.#changeNumber === MAX_NUMBER) {
      this.renew(`change number ${MAX_NUMBER} was reached`);
      return;
    }
    this.#changeNumber++;
    this.#header.setUint32(24, this.#changeNumber, true);
  }

  /** Forgets all history: "unknown means full". */
  renew(reason: string): void {
    this.reason = reason;
    this.#generationId = crypto.randomUUID();
    this.#changeNumber = 1;
    // In this order: killed in between, the old generation must not be there with marks missing.
    putText(this.#header, 32, this.#generationId);
    this.#header.setUint32(24, 1, true);
    this.map.fill(0);
    for (const copy of this.#copies) copy.note(0, this.blockCount - 1);
  }

  /** Copies the map into `target`, which has its length, for as long as the copy is under way. */
  copyTo(target: Uint8Array): MapCopy {
    return new MapCopy(this.map, target, this.#copies);
  }

  #writeHeader(shift: number): void {
    const header = this.#header;
    for (let i = 0; i < MAGIC.length; i++) header.setUint8(i, MAGIC.charCodeAt(i));
    header.setUint32(8, VERSION, true);
    header.setUint32(12, shift, true);
    header.setBigUint64(16, BigInt(this.deviceSize), true);
    header.setUint32(28, 0, true);
    header.setUint32(LOST, 0, true);
    putText(header, 72, bootId());
    this.#writeIdentity();
    header.setFloat64(LAST_MARK, Date.now(), true);
    for (let i = 0; i < MARK_COUNT; i++) header.setFloat64(MARKS + 8 * i, 0, true);
  }

  #writeIdentity(): void {
    const identity = this.#originPath === null ? null : originIdentity(this.#originPath);
    this.#header.setUint32(112, identity === null ? 0 : identity.kind === 'file' ? 1 : identity.counted ? 2 : 3, true);
    this.#header.setBigUint64(120, identity?.id ?? 0n, true);
    this.#header.setBigUint64(128, identity?.version ?? 0n, true);
    this.#header.setBigUint64(144, identity?.change ?? 0n, true);
  }

  /** Writes the map to disk, then notes that the device was let go in order, after its last write; not so where
   *  `settled` is false, or a sync has failed: what was written may be lost. Safe to call twice. */
  close(settled = true): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#mapping === null) return;
    const { address, memory } = this.#mapping;
    // The clean mark comes after what it stands for: the machine may stop between the two.
    if (syncMapping(address, memory.byteLength) === 0 && settled && this.#header.getUint32(LOST, true) === 0)
      this.#markClean(address);
    unmap(address, memory.byteLength);
    fs.closeSync(this.#fd);
  }

  #markClean(address: number): void {
    const before = storedIdentity(this.#header);
    try {
      this.#writeIdentity();
    } catch {
      return; // The origin's path is gone. The map stays without its clean mark, and will be doubted.
    }
    const counts = this.#countsWrites(before, storedIdentity(this.#header));
    this.#header.setUint32(28, counts ? CLEAN : CLEAN_UNCOUNTED, true);
    syncMapping(address, HEADER);
  }

  /** Whether a write of somebody else would show: where we wrote, ours must have. */
  #countsWrites(before: OriginIdentity | null, now: OriginIdentity | null): boolean {
    if (before?.kind !== 'device' || now === null) return true;
    if (before.counted !== now.counted) return false;
    return this.#lastMarkMs >= 0 ? before.version !== now.version : now.counted;
  }
}

/** Whether a sync has failed in the life of the machine that still goes on: also a history that begins anew cannot end clean. */
function hasLostBefore(fd: number): boolean {
  const bytes = Buffer.alloc(HEADER);
  if (fs.readSync(fd, bytes, 0, HEADER, 0) < HEADER) return false;
  const header = new DataView(bytes.buffer, bytes.byteOffset, HEADER);
  return (
    bytes.toString('latin1', 0, 8) === MAGIC && header.getUint32(LOST, true) === 1 && text(header, 72) === bootId()
  );
}

/** Why a stored map cannot be trusted for the device as it is now, or ''. */
function doubtAbout(fd: number, length: number, shift: number, options: CbtMapOptions): string {
  const bytes = Buffer.alloc(HEADER);
  const got = fs.readSync(fd, bytes, 0, HEADER, 0);
  const header = new DataView(bytes.buffer, bytes.byteOffset, HEADER);
  if (got < HEADER || bytes.toString('latin1', 0, 8) !== MAGIC || !isKnown(header.getUint32(8, true))) {
    return 'the stored change map is not readable';
  }
  const size = Number(header.getBigUint64(16, true));
  if (size !== options.deviceSize) return `the disk was resized from ${size} to ${options.deviceSize} bytes`;
  const stored = header.getUint32(12, true);
  if (stored !== shift) return `the tracking block was changed from ${2 ** stored} to ${2 ** shift} bytes`;
  const number = header.getUint32(24, true);
  if (fs.fstatSync(fd).size !== length || number < 1 || number > MAX_NUMBER || !UUID.test(text(header, 32))) {
    return 'the stored change map is not readable';
  }
  const marks = Buffer.alloc(length - HEADER);
  fs.readSync(fd, marks, 0, marks.length, HEADER);
  if (marks.some((mark) => mark > number)) return 'the stored change map contradicts itself';
  const now = options.originPath === null ? null : originIdentity(options.originPath);
  if (now?.kind === 'device' && text(header, 72) !== bootId()) {
    return 'the machine was started anew, and with it the count of what was written to the device';
  }
  return header.getUint32(28, true) === 0
    ? doubtAfterKill(header, now, options)
    : doubtAfterDetach(header, now, options);
}

function isKnown(version: number): boolean {
  return version >= OLDEST_VERSION && version <= VERSION;
}

function doubtAfterDetach(header: DataView, now: OriginIdentity | null, { originPrivate }: CbtMapOptions): string {
  const then = storedIdentity(header);
  if (isAnother(then, now)) return 'the disk is another one than before';
  if (!isUntouched(then, now)) return 'the disk was written while it was not attached';
  if (originPrivate === true || (header.getUint32(28, true) === CLEAN && then?.counted === now?.counted)) return '';
  return 'the kernel does not count what is written to the device, so others may have written unseen (queue/iostats)';
}

function doubtAfterKill(header: DataView, now: OriginIdentity | null, { originPrivate }: CbtMapOptions): string {
  if (text(header, 72) !== bootId()) return 'the machine stopped before the disk was detached';
  const then = storedIdentity(header);
  if (isAnother(then, now)) return 'the disk is another one than before';
  if (now?.kind === 'device' && originPrivate === true) return '';
  if (now?.kind === 'device')
    return 'the daemon ended without detaching a kernel device, which others may have written since';
  if (now === null || isUntouched(then, now)) return '';
  // Its last write was ours if it came with a mark: the last one, or one before it where the process was killed between later
  // marks and their writes. Others are as suspicious when they are earlier as when they are later: somebody has set
  // the clock back, or the times of the file.
  const lastMs = header.getFloat64(LAST_MARK, true);
  const earlierMs = Array.from({ length: MARK_COUNT }, (_, i) => header.getFloat64(MARKS + 8 * i, true));
  // One that is later was made before somebody set the clock back.
  const marksMs = [lastMs, ...earlierMs.filter((markMs) => lastMs >= markMs && lastMs - markMs <= MARKS_AHEAD_MS)];
  const isOurs = (timeNs: bigint): boolean =>
    marksMs.some((markMs) => {
      const sinceMarkMs = Number(timeNs / 1_000_000n) - markMs;
      return sinceMarkMs >= -FILE_CLOCK_STEP_MS && sinceMarkMs <= KILL_SLACK_MS;
    });
  return isOurs(now.version) && isOurs(now.change) ? '' : 'the disk was written while it was not attached';
}

function isAnother(then: OriginIdentity | null, now: OriginIdentity | null): boolean {
  return then?.id !== now?.id || then?.kind !== now?.kind || (now?.kind === 'device' && then?.change !== now.change);
}

function isUntouched(then: OriginIdentity | null, now: OriginIdentity | null): boolean {
  return then?.version === now?.version && then?.change === now?.change;
}

function storedIdentity(header: DataView): OriginIdentity | null {
  const kind = header.getUint32(112, true);
  if (kind === 0) return null;
  return {
    kind: kind === 1 ? 'file' : 'device',
    counted: kind !== 3,
    id: header.getBigUint64(120, true),
    version: header.getBigUint64(128, true),
    change: header.getBigUint64(144, true),
  };
}

function text(header: DataView, at: number): string {
  let result = '';
  for (let i = 0; i < 36; i++) result += String.fromCharCode(header.getUint8(at + i));
  return result;
}

function putText(header: DataView, at: number, value: string): void {
  for (let i = 0; i < 36; i++) header.setUint8(at + i, i < value.length ? value.charCodeAt(i) : 0x20);
}
