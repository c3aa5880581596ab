/** Where a restore writes: a file that appears under its name when it is whole, or a kernel block device.
 *
 *  What holds data already is not overwritten unless that was said: a file that is not empty, or a
 *  device that does not begin with zeros. */

import fs from 'node:fs';
import { FLUSH, READ, WRITE, WRITE_ZEROES, runBio } from '../block/bio.ts';
import type { BioPool, Op } from '../block/bio.ts';
import type { BlockDevice } from '../block/device.ts';
import { lockImage } from '../block/locks.ts';
import { openDevice } from '../block/open.ts';
import { borrow } from '../io/files.ts';
import type { Reactor } from '../io/reactor.ts';
import { BlksnapError, errnoError, toBlksnapError } from '../util/errors.ts';
import { GIB, MIB } from '../util/units.ts';
import { isZero } from '../util/zeroes.ts';
import type { CopySink } from './copy.ts';
import { PARTIAL, renameDurably } from '../util/durable.ts';

const ZERO_BYTES_AT_ONCE = GIB;
/** Partition tables, boot sectors, the superblocks of file systems and volume managers begin in here. */
const LABEL_BYTES = MIB;

export interface Target extends CopySink {
  /** The file that nobody sees before `finish`, and that reads as zeros where nothing is written: may be written without
   *  us until then. Null: a device. */
  readonly file: string | null;
  /** Makes what was written durable and, for a file, gives it its name. */
  finish(): Promise<void>;
  /** Gives up: a file is removed, a device is left as it is by now. Does nothing after finish. */
  abort(): Promise<void>;
}

interface TargetContext {
  readonly reactor: Reactor;
  readonly pool: BioPool;
}

export interface TargetOptions {
  readonly path: string;
  /** Bytes that will be written. */
  readonly size: number;
  readonly overwrite: boolean;
}

/** Errors: EEXIST when the target holds data, EINVAL when it is too small or no place for a disk, EBUSY when it
 *  is in use. */
export async function openTarget(options: TargetOptions, context: TargetContext): Promise<Target> {
  const existing = fs.statSync(options.path, { throwIfNoEntry: false });
  if (existing === undefined) return await newFile(options.path, options, context);
  if (existing.isBlockDevice()) return await blockDevice(options, context);
  if (!existing.isFile())
    throw refusal(existing.isDirectory() ? 'EISDIR' : 'EINVAL', options, 'it is neither a file nor a block device');
  if (existing.size > 0 && !options.overwrite) {
    if (existing.size < options.size)
      throw refusal(
        'EINVAL',
        options,
        `it is smaller (${existing.size} bytes) and not empty; remove it or give another path`,
      );
    throw refusal('EEXIST', options, 'it is there and not empty; remove it, or give --overwrite to replace it');
  }
  return await replacedFile(fs.realpathSync(options.path), existing, options, context);
}

function refusal(code: 'EEXIST' | 'EINVAL' | 'EISDIR', options: TargetOptions, why: string): BlksnapError {
  return new BlksnapError(code, `Cannot restore ${options.size} bytes to "${options.path}": ${why}`);
}

async function newFile(file: string, { size }: TargetOptions, context: TargetContext): Promise<Target> {
  const partial = file + PARTIAL;
  let fd: number;
  try {
    fd = fs.openSync(partial, 'wx', 0o600);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw toBlksnapError(cause, `Cannot restore to "${file}"`);
    throw new BlksnapError(
      'EEXIST',
      `Cannot restore to "${file}": "${partial}" is there, from a restore that runs or was interrupted; if none runs, remove it`,
    );
  }
  let device: BlockDevice;
  try {
    fs.ftruncateSync(fd, size);
    device = await openDevice(partial, context);
  } catch (cause) {
    fs.unlinkSync(partial);
    throw toBlksnapError(cause, `Cannot restore to "${file}"`);
  } finally {
    fs.closeSync(fd);
  }
  return new DeviceTarget(device, context, {
    file: partial,
    publish: () => renameDurably(partial, file),
    discard: () => fs.rmSync(partial, { force: true }),
  });
}

/** A file that takes the place of another when it is whole, with that one's owner and mode. The other is held
 *  open, and locked, until then: a disk that is in use is not pulled away. */
async function replacedFile(
  file: string,
  existing: fs.Stats,
  options: TargetOptions,
  context: TargetContext,
): Promise<Target> {
  const held = fs.openSync(file, 'r+');
  try {
    lockImage(held, file, { write: true });
    const target = await newFile(file, options, context);
    fs.chmodSync(file + PARTIAL, existing.mode & 0o7777);
    try {
      fs.chownSync(file + PARTIAL, existing.uid, existing.gid);
    } catch {
      // Only root may give files away; a restored file of one's own is better than none.
    }
    let open = true;
    const close = (end: () => Promise<void>) => async (): Promise<void> => {
      try {
        await end();
      } finally {
        if (open) fs.closeSync(held);
        open = false;
      }
    };
    return {
      file: target.file,
      write: (offset, at, length) => target.write(offset, at, length),
      zero: (offset, length) => target.zero(offset, length),
      finish: close(() => target.finish()),
      abort: close(() => target.abort()),
    };
  } catch (cause) {
    fs.closeSync(held);
    throw cause;
  }
}

async function blockDevice(options: TargetOptions, context: TargetContext): Promise<Target> {
  const device = await openDevice(options.path, context);
  try {
    if (device.size < options.size) throw refusal('EINVAL', options, `it has only ${device.size} bytes`);
    if (options.size % device.logicalBlockSize !== 0) {
      throw refusal(
        'EINVAL',
        options,
        `it has blocks of ${device.logicalBlockSize} bytes, which that is no multiple of`,
      );
    }
    if (!options.overwrite && (await holdsData(device, context))) {
      throw refusal('EEXIST', options, 'it holds data; give --overwrite to replace it');
    }
  } catch (cause) {
    await device.close();
    throw cause;
  }
  return new DeviceTarget(device, context, { file: null, publish: () => {}, discard: () => {} });
}

async function holdsData(device: BlockDevice, { reactor, pool }: TargetContext): Promise<boolean> {
  const length = Math.min(LABEL_BYTES, device.size);
  const at = await borrow(reactor.arena, length);
  try {
    const status = await runBio(pool, device, { op: READ, offset: 0, length, at });
    if (status !== 0) throw errnoError(status, `Cannot read "${device.name}"`);
    return !isZero(reactor.arena.bytes.subarray(at, at + length));
  } finally {
    reactor.arena.release(at);
  }
}

interface TargetEnd extends Pick<Target, 'file'> {
  readonly publish: () => void;
  readonly discard: () => void;
}

class DeviceTarget implements Target {
  readonly #device: BlockDevice;
  readonly #context: TargetContext;
  readonly file: string | null;
  readonly #end: TargetEnd;
  #open = true;

  constructor(device: BlockDevice, context: TargetContext, end: TargetEnd) {
    this.file = end.file;
    this.#device = device;
    this.#context = context;
    this.#end = end;
  }

  write(offset: number, at: number, length: number): Promise<void> {
    return this.#run(WRITE, { offset, length, at });
  }

  async zero(offset: number, length: number): Promise<void> {
    if (this.file !== null) return;
    if (!this.#device.capabilities.writeZeroes) return await this.#writeZeros(offset, length);
    for (let done = 0; done < length; done += ZERO_BYTES_AT_ONCE) {
      await this.#run(WRITE_ZEROES, {
        offset: offset + done,
        length: Math.min(ZERO_BYTES_AT_ONCE, length - done),
        at: 0,
      });
    }
  }

  async #writeZeros(offset: number, length: number): Promise<void> {
    const { arena } = this.#context.reactor;
    const step = Math.min(MIB, length);
    const at = await borrow(arena, step);
    try {
      arena.bytes.fill(0, at, at + step);
      for (let done = 0; done < length; done += step)
        await this.#run(WRITE, { offset: offset + done, length: Math.min(step, length - done), at });
    } finally {
      arena.release(at);
    }
  }

  async #run(op: Op, io: { readonly offset: number; readonly length: number; readonly at: number }): Promise<void> {
    const status = await runBio(this.#context.pool, this.#device, { op, ...io });
    if (status !== 0)
      throw errnoError(status, `Cannot write ${io.length} bytes at offset ${io.offset} of "${this.#device.name}"`);
  }

  async finish(): Promise<void> {
    await this.#run(FLUSH, { offset: 0, length: 0, at: 0 });
    await this.#device.close();
    this.#end.publish();
    this.#open = false;
  }

  async abort(): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    await this.#device.close();
    this.#end.discard();
  }
}
