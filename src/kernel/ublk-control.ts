/** The ublk driver's control device: makes, starts, stops and recovers devices. Slow path; for a thread with an event loop.
 *
 *  Commands are io_uring commands of 32 bytes, on a small ring of their own. The kernel runs them in a worker, and some
 *  wait for others: a start waits until the queue is served, and reads the partition table through it. */

import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { mapAnonymous, unmap } from '../io/sys.ts';
import type { Mapping } from '../io/sys.ts';
import { Ring } from '../io/uring/ring.ts';
import { BlksnapError, ERRNO, errnoError, toBlksnapError } from '../util/errors.ts';
import {
  CONTROL,
  decodeDeviceInfo,
  DEVICE_INFO_BYTES,
  encodeDeviceInfo,
  encodeParameters,
  OUR_FLAGS,
  PARAMETERS_BYTES,
  SECTOR_BYTES,
} from './ublk-protocol.ts';
import type { ControlName, DeviceInfo, DeviceParameters } from './ublk-protocol.ts';

export const CONTROL_PATH = '/dev/ublk-control';
const ENTRIES = 8;
const BUFFER_BYTES = 4096;
const LIMIT_MS = 60_000;
const FEATURES_LIMIT_MS = 5000;
const DELETE_LIMIT_MS = 500;
const WAITS_MS = { first: 1, longest: 32 };
const NO_QUEUE = 0xffff;
const FEATURES_BYTES = 8;

export class UblkControl {
  readonly #fd: number;
  readonly #ring: Ring;
  readonly #buffer: Mapping;
  readonly #view: DataView;
  /** The command under way: the buffer serves one at a time. */
  #last: Promise<unknown> = Promise.resolve();
  /** The last command's. */
  #number = 0;

  /** Errors: ENODEV without the kernel module; EACCES; EOPNOTSUPP where io_uring has no wide entries. */
  static open(): UblkControl {
    let fd: number;
    try {
      fd = fs.openSync(CONTROL_PATH, 'r+');
    } catch (cause) {
      const { code, message } = toBlksnapError(cause);
      if (code !== 'ENOENT') throw toBlksnapError(cause, 'Cannot make ublk devices');
      throw new BlksnapError(
        'ENODEV',
        `Cannot make ublk devices: ${message}; load the kernel module: modprobe ublk_drv`,
      );
    }
    try {
      return new UblkControl(fd, Ring.open(ENTRIES, { wide: true }));
    } catch (cause) {
      fs.closeSync(fd);
      throw cause;
    }
  }

  private constructor(fd: number, ring: Ring) {
    const buffer = mapAnonymous(BUFFER_BYTES);
    if (typeof buffer === 'number') throw errnoError(-buffer, 'Cannot map memory');
    this.#fd = fd;
    this.#ring = ring;
    this.#buffer = buffer;
    this.#view = new DataView(buffer.memory);
  }

  /** What the driver can do: device flags. The one command that is waited for at once. Errors: EOPNOTSUPP for a driver
   *  that lacks what our devices need. */
  features(): number {
    this.#prepare('features', 0, { length: FEATURES_BYTES, data: 0 });
    this.#ring.enter(1, FEATURES_LIMIT_MS);
    const result = this.#take() ?? -ERRNO.ETIMEDOUT;
    const flags = result < 0 ? 0 : this.#view.getUint32(0, true);
    if ((flags & OUR_FLAGS) === OUR_FLAGS) return flags;
    throw new BlksnapError(
      'EOPNOTSUPP',
      'Cannot make ublk devices: the kernel is too old (want 6.5 or newer); use --via nbd',
    );
  }

  /** Makes a device that nobody can see yet. Its id may be another than the one asked for only with ANY_ID. */
  add(info: Pick<DeviceInfo, 'id' | 'queueDepth' | 'maxIoBytes' | 'flags' | 'mark'>): Promise<DeviceInfo> {
    return this.#do('addDevice', info.id, {
      length: DEVICE_INFO_BYTES,
      write: (view) => encodeDeviceInfo(view, info),
      read: decodeDeviceInfo,
    });
  }

  /** Errors: ENODEV. */
  info(id: number): Promise<DeviceInfo> {
    return this.#do('deviceInfo', id, { length: DEVICE_INFO_BYTES, read: decodeDeviceInfo });
  }

  async setParameters(id: number, parameters: DeviceParameters): Promise<void> {
    await this.#do('setParameters', id, {
      length: PARAMETERS_BYTES,
      write: (view) => encodeParameters(view, parameters),
    });
  }

  /** Shows the block device. Ends when its queue is served, by this process. */
  async start(id: number): Promise<void> {
    await this.#do('startDevice', id, { data: process.pid });
  }

  /** Takes the block device away, from whoever uses it. */
  async stop(id: number): Promise<void> {
    await this.#do('stopDevice', id);
  }

  /** Gives the device up; it is gone when the last program has closed it. Kernels that know no such command wait for
   *  that, and are not waited for. */
  async delete(id: number): Promise<void> {
    try {
      await this.#do('deleteDeviceLater', id);
    } catch (cause) {
      if (toBlksnapError(cause).code !== 'EOPNOTSUPP') throw cause;
      await this.#do('deleteDevice', id, { limitMs: DELETE_LIMIT_MS }).catch((late: unknown) => {
        if (toBlksnapError(late).code !== 'ETIMEDOUT') throw late;
      });
    }
  }

  /** Lets another process serve a device whose server has died. Errors: EBUSY while the kernel is not through with that. */
  async startRecovery(id: number): Promise<void> {
    await this.#do('startRecovery', id);
  }

  /** Ends when the queue is served again, by this process. */
  async endRecovery(id: number): Promise<void> {
    await this.#do('endRecovery', id, { data: process.pid });
  }

  async updateSize(id: number, size: number): Promise<void> {
    await this.#do('updateSize', id, { data: size / SECTOR_BYTES });
  }

  close(): void {
    fs.closeSync(this.#fd);
    this.#ring.close();
    unmap(this.#buffer.address, BUFFER_BYTES);
  }

  /** Runs one command after those before it. */
  #do<T = void>(
    name: ControlName,
    id: number,
    io: {
      readonly length?: number;
      readonly data?: number;
      readonly limitMs?: number;
      readonly write?: (view: DataView) => void;
      readonly read?: (view: DataView) => T;
    } = {},
  ): Promise<T> {
    const done = this.#last.then(async () => {
      io.write?.(this.#view);
      const result = await this.#command(name, id, { length: 0, data: 0, limitMs: LIMIT_MS, ...io });
      if (result < 0) throw errnoError(-result, `Command ${name} of ublk device ${id} failed`);
      return io.read?.(this.#view) as T;
    });
    this.#last = done.catch(() => {});
    return done;
  }

  /** The command's result; -ETIMEDOUT when it has none in time. */
  async #command(
    name: ControlName,
    id: number,
    { limitMs, ...rest }: { readonly length: number; readonly data: number; readonly limitMs: number },
  ): Promise<number> {
    this.#prepare(name, id, rest);
    // Its waits are counted, not the clock's time: a machine that was stopped meanwhile is not late.
    let waitedMs = 0;
    for (let waitMs = WAITS_MS.first; ; waitMs = Math.min(waitMs * 2, WAITS_MS.longest)) {
      this.#ring.enter(0, -1);
      const result = this.#take();
      if (result !== undefined) return result;
      if (waitedMs > limitMs) return -ERRNO.ETIMEDOUT;
      await sleep(waitMs);
      waitedMs += waitMs;
    }
  }

  #prepare(name: ControlName, id: number, { length, data }: { readonly length: number; readonly data: number }): void {
    const address = length === 0 ? 0 : this.#buffer.address;
    const argument = Uint32Array.of(
      id,
      NO_QUEUE | (length << 16),
      address >>> 0,
      Math.floor(address / 2 ** 32),
      data >>> 0,
      Math.floor(data / 2 ** 32),
      0,
      0,
    );
    this.#ring.prepareCommand(this.#fd, CONTROL[name], argument, ++this.#number);
  }

  /** The result of the last command, if it is there. Those of others came too late for anybody. */
  #take(): number | undefined {
    let found: number | undefined;
    this.#ring.reap((userData, result) => {
      if (userData === this.#number) found = result;
    });
    return found;
  }
}
