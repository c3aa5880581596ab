/** The filter `remap`: redirects ranges of a live disk to other devices, and back.
 *
 *  Below the tracker, so that changes are marked, and old data is copied, wherever a range lies. A range changes its
 *  place behind the disk's gate: no bio is under way, new ones wait. With `copy` its data moves along, which
 *  takes as long as reading and writing it does; without, the range shows what the other device holds.
 *
 *  Hot path: submit. A bio that touches no redirected range passes as it is; others are cut where ranges end. */

import type { Reactor } from '../io/reactor.ts';
import { borrow } from '../io/files.ts';
import { unreachable } from '../util/assert.ts';
import { BlksnapError, errnoError } from '../util/errors.ts';
import { KIB } from '../util/units.ts';
import { DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, runBio } from './bio.ts';
import type { Bio, BioOwner, BioPool, BioSink } from './bio.ts';
import type { BlockDevice, Extent } from './device.ts';
import type { Disk } from './disk.ts';
import { Ending } from './ending.ts';
import { BlockFilter } from './filter.ts';

export const REMAP_NAME = 'remap';
const REMAP_ALTITUDE = 50;
const COPY_BYTES = 256 * KIB;

/** A range of the disk, and where it lies now. Bytes. */
export interface Redirect {
  readonly offset: number;
  readonly length: number;
  readonly device: BlockDevice;
  /** Where in the device. */
  readonly at: number;
}

export class RemapFilter extends BlockFilter implements BioOwner {
  readonly name = REMAP_NAME;
  readonly altitude = REMAP_ALTITUDE;
  readonly #reactor: Reactor;
  readonly #pool: BioPool;
  readonly #ending = new Ending();
  #disk: Disk | null = null;
  /** By offset; none overlaps another. */
  #redirects: readonly Redirect[] = [];

  constructor(context: { readonly reactor: Reactor; readonly pool: BioPool }) {
    super();
    this.#reactor = context.reactor;
    this.#pool = context.pool;
  }

  get redirects(): readonly Redirect[] {
    return this.#redirects;
  }

  // --- bios -----------------------------------------------------------------------------------

  submit(bio: Bio): void {
    switch (bio.op) {
      case READ:
      case WRITE:
      case DISCARD:
      case WRITE_ZEROES:
        if (this.#touched(bio)) this.#cut(bio);
        else this.below.submit(bio);
        return;
      case FLUSH:
        if (this.#redirects.length > 0) this.#flush(bio);
        else this.below.submit(bio);
        return;
      default:
        unreachable(bio.op);
    }
  }

  #touched(bio: Bio): boolean {
    const end = bio.offset + bio.length;
    for (const { offset, length } of this.#redirects) {
      if (offset >= end) return false;
      if (offset + length > bio.offset) return true;
    }
    return false;
  }

  #cut(bio: Bio): void {
    const end = bio.offset + bio.length;
    bio.status = 0;
    bio.waiting = 1;
    let from = bio.offset;
    for (const { offset, length, device, at } of this.#redirects) {
      if (offset + length <= from) continue;
      if (offset >= end) break;
      if (offset > from) this.#send(bio, this.below, from, from, offset - from);
      from = Math.max(from, offset);
      const until = Math.min(end, offset + length);
      this.#send(bio, device, from, at + from - offset, until - from);
      from = until;
    }
    if (from < end) this.#send(bio, this.below, from, from, end - from);
    this.#partEnded(bio);
  }

  #flush(bio: Bio): void {
    bio.status = 0;
    bio.waiting = 1;
    this.#send(bio, this.below, 0, 0, 0);
    for (const { device } of this.#redirects) this.#send(bio, device, 0, 0, 0);
    this.#partEnded(bio);
  }

  /** Sends the part of a bio that begins at `from` to a place in a device. */
  #send(bio: Bio, sink: BioSink, from: number, to: number, length: number): void {
    bio.waiting++;
    const part = this.#pool.get(bio.op, to, length, bio.at + from - bio.offset, bio.flags, this);
    part.tag = bio;
    sink.submit(part);
  }

  bioEnded(part: Bio): void {
    const bio = part.tag as Bio;
    if (part.status !== 0) bio.status = part.status;
    this.#pool.put(part);
    this.#partEnded(bio);
  }

  #partEnded(bio: Bio): void {
    if (--bio.waiting === 0) this.#ending.end(bio, bio.status);
  }

  override async extents(
    offset: number,
    length: number,
    below: (offset: number, length: number) => Promise<Extent[]>,
  ): Promise<Extent[]> {
    const next = this.#redirects.find((redirect) => redirect.offset + redirect.length > offset);
    if (next === undefined || next.offset >= offset + length) return below(offset, length);
    if (next.offset > offset) return below(offset, next.offset - offset);
    return next.device.extents(next.at + offset - next.offset, Math.min(length, next.offset + next.length - offset));
  }

  // --- ranges ---------------------------------------------------------------------------------

  /** Redirects a range. `switched` runs behind the gate, before a bio goes the new way; what it
   *  throws leaves the disk as it was.
   *  Errors: EINVAL for a range outside the disk or device, or off the blocks; EBUSY where one is redirected
   *  already; those of copying. The disk is then as it was. */
  async redirect(
    redirect: Redirect,
    options: { readonly copy: boolean; readonly switched?: () => void },
  ): Promise<void> {
    this.#check(redirect);
    await this.#behindGate(async () => {
      const { offset, length, device, at } = redirect;
      if (options.copy) await this.#copy({ sink: this.below, offset }, { sink: device, offset: at }, length);
      options.switched?.();
      this.#redirects = [...this.#redirects, redirect].sort((a, b) => a.offset - b.offset);
    });
  }

  /** Takes the redirect that begins at `offset` away. Errors: ENOENT; those of copying. */
  async restore(offset: number, options: { readonly copy: boolean; readonly switched?: () => void }): Promise<void> {
    const redirect = this.#redirects.find((candidate) => candidate.offset === offset);
    if (redirect === undefined) {
      const known = this.#redirects.map((other) => other.offset).join(', ') || 'none';
      throw new BlksnapError(
        'ENOENT',
        `No redirected range of disk "${this.#disk?.name ?? ''}" begins at ${offset}: there are ${known}`,
      );
    }
    await this.#behindGate(async () => {
      const { length, device, at } = redirect;
      if (options.copy) await this.#copy({ sink: device, offset: at }, { sink: this.below, offset }, length);
      options.switched?.();
      this.#redirects = this.#redirects.filter((other) => other !== redirect);
    });
  }

  async #behindGate(change: () => Promise<void>): Promise<void> {
    const disk = this.#disk;
    if (disk === null) throw new BlksnapError('ENODEV', 'The filter remap is not attached to a disk');
    try {
      await disk.freeze();
      await change();
    } finally {
      disk.thaw();
    }
  }

  #check({ offset, length, device, at }: Redirect): void {
    const disk = this.#disk!;
    const refuse = (code: 'EINVAL' | 'EBUSY', why: string): never => {
      throw new BlksnapError(code, `Cannot redirect ${length} bytes at ${offset} of disk "${disk.name}": ${why}`);
    };
    const block = Math.max(disk.logicalBlockSize, device.logicalBlockSize);
    if (
      ![offset, length, at].every((value) => Number.isSafeInteger(value) && value >= 0 && value % block === 0) ||
      length === 0
    ) {
      refuse('EINVAL', `offsets and length must be multiples of ${block}`);
    }
    if (offset + length > disk.size) refuse('EINVAL', `its size is ${disk.size}`);
    if (at + length > device.size) refuse('EINVAL', `"${device.name}" has ${device.size} bytes, too few from ${at} on`);
    if (device.readOnly && !disk.readOnly) refuse('EINVAL', `"${device.name}" is read-only`);
    if (disk.logicalBlockSize < device.logicalBlockSize) refuse('EINVAL', `"${device.name}" has larger blocks`);
    if (this.#redirects.some((other) => other.offset < offset + length && offset < other.offset + other.length)) {
      refuse('EBUSY', 'some of it is redirected already; take that back first');
    }
  }

  async #copy(
    from: { sink: BioSink; offset: number },
    to: { sink: BioSink; offset: number },
    length: number,
  ): Promise<void> {
    const { arena } = this.#reactor;
    const at = await borrow(arena, COPY_BYTES);
    try {
      for (let done = 0; done < length; done += COPY_BYTES) {
        const part = { length: Math.min(COPY_BYTES, length - done), at };
        const read = await runBio(this.#pool, from.sink, { op: READ, offset: from.offset + done, ...part });
        if (read !== 0) throw errnoError(read, `Cannot copy what is redirected: reading at ${from.offset + done}`);
        const written = await runBio(this.#pool, to.sink, { op: WRITE, offset: to.offset + done, ...part });
        if (written !== 0) throw errnoError(written, `Cannot copy what is redirected: writing at ${to.offset + done}`);
      }
      const flushed = await runBio(this.#pool, to.sink, { op: FLUSH, offset: 0, length: 0 });
      if (flushed !== 0) throw errnoError(flushed, 'Cannot copy what is redirected: flushing');
    } finally {
      arena.release(at);
    }
  }

  // --- life -----------------------------------------------------------------------------------

  override async attach(disk: Disk): Promise<void> {
    this.#disk = disk;
  }

  /** Errors: EBUSY while a range is redirected: without the filter the disk would show old data. */
  override async detach(): Promise<void> {
    if (this.#redirects.length > 0) {
      throw new BlksnapError(
        'EBUSY',
        `Cannot detach filter "${REMAP_NAME}" from disk "${this.#disk?.name ?? ''}": ${this.#redirects.length} ranges are redirected; take them back first`,
      );
    }
    this.#disk = null;
  }

  /** Forgets every redirect, for the disk to be closed: nobody may use it any more. */
  release(): void {
    this.#redirects = [];
  }

  /** Commands: `list`. */
  override async ctl(command: string, _payload: unknown): Promise<unknown> {
    if (command !== 'list')
      throw new BlksnapError('EINVAL', `Filter "${REMAP_NAME}" has no command "${command}": want list`);
    return this.#redirects.map(({ offset, length, device, at }) => ({ offset, length, device: device.name, at }));
  }
}
