/** /dev/ublkbN: block devices served from an I/O thread's own loop, without sockets (Linux 6.5 and newer).
 *
 *  The kernel keeps a device whose server has died, and all requests to it, until another process serves it; those that
 *  were under way are given to that one again. A device is known by its mark, which is made of the wish's id. */

import { spawnSync } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { KIB } from '../util/units.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import type { DeviceWish, KernelDeviceProvider } from './provider.ts';
import { CONTROL_PATH, UblkControl } from './ublk-control.ts';
import { ANY_ID, OUR_FLAGS, UPDATE_SIZE } from './ublk-protocol.ts';
import type { DeviceInfo, QueueShape, ServedExport } from './ublk-protocol.ts';

/** Requests that the kernel may have under way with us; each takes memory only while it is. */
const QUEUE_DEPTH = 128;
const MAX_IO_BYTES = 256 * KIB;
const DEVICE_CLASS = '/sys/class/ublk-char';
/** How long the kernel may take to see that a server has died. */
const DEATH_LIMIT_MS = 30_000;
const DEATH_POLL_MS = 20;

/** Where the devices' queues are served. */
export interface QueueServer {
  /** The reactor's. */
  readonly driver: string;
  /** Serves the queue of a device, as the export is. Ends when its requests are awaited. */
  serve(exportName: string, shape: QueueShape): Promise<ServedExport>;
  /** Ends when the queue of a device has ended, or at once when it is not served. */
  ended(id: number): Promise<void>;
  describe(exportName: string): Promise<ServedExport>;
}

export class UblkProvider implements KernelDeviceProvider {
  readonly via = 'ublk';
  readonly #server: QueueServer;

  constructor(server: QueueServer) {
    this.#server = server;
  }

  obstacle({ load }: { readonly load: boolean }): BlksnapError | null {
    if (process.platform !== 'linux') return new BlksnapError('EOPNOTSUPP', 'Kernel devices need Linux');
    if (process.getuid?.() !== 0) {
      return new BlksnapError('EPERM', 'Only root can make kernel devices: run the daemon as root, or leave out --dev');
    }
    const { driver } = this.#server;
    if (driver !== 'uring') {
      return new BlksnapError(
        'EOPNOTSUPP',
        `Cannot make ublk devices: they need io_uring, and the daemon runs on the ${driver} driver; use --via nbd`,
      );
    }
    if (load && !fs.existsSync(CONTROL_PATH)) spawnSync('modprobe', ['ublk_drv'], { stdio: 'ignore' });
    let control: UblkControl | null = null;
    try {
      control = UblkControl.open();
      control.features();
      return null;
    } catch (cause) {
      return toBlksnapError(cause);
    } finally {
      control?.close();
    }
  }

  create(wish: DeviceWish, { preferred }: { readonly preferred: string | null }): Promise<string> {
    return this.#controlling(`Cannot make a kernel device of "${wish.exportName}"`, async (control) => {
      const flags = OUR_FLAGS | (control.features() & UPDATE_SIZE);
      const wanted = preferred === null ? ANY_ID : numberOf(preferred);
      const make = (id: number): Promise<DeviceInfo> =>
        control.add({ id, queueDepth: QUEUE_DEPTH, maxIoBytes: MAX_IO_BYTES, flags, mark: markOf(wish.id) });
      const { id, maxIoBytes } = await make(wanted).catch((cause: unknown) => {
        if (toBlksnapError(cause).code === 'EEXIST') return make(ANY_ID);
        throw cause;
      });
      try {
        await control.setParameters(id, { ...(await this.#server.describe(wish.exportName)), maxIoBytes });
        await this.#server.serve(wish.exportName, { id, depth: QUEUE_DEPTH, maxIoBytes });
        await control.start(id);
        keepOneTag(id);
      } catch (cause) {
        await this.#takeDown(control, id);
        throw cause;
      }
      return pathOf(id);
    });
  }

  reconnect(wish: DeviceWish): Promise<string | null> {
    return this.#controlling(`Cannot serve the kernel device of "${wish.exportName}" again`, async (control) => {
      const info = await find(control, wish.id);
      if (info === null) return null;
      if (info.state === 'dead') {
        // Its daemon died before anybody could see it.
        await control.delete(info.id);
        return null;
      }
      const { id, queueDepth: depth, maxIoBytes } = info;
      await takeOver(control, info);
      const { size } = await this.#server.serve(wish.exportName, { id, depth, maxIoBytes });
      await control.endRecovery(id);
      if (canResize(info)) await control.updateSize(id, size);
      return pathOf(id);
    });
  }

  resize(wish: DeviceWish): Promise<void> {
    return this.#controlling(`Cannot resize the kernel device of "${wish.exportName}"`, async (control) => {
      const info = await find(control, wish.id);
      if (info === null) return;
      const { size } = await this.#server.describe(wish.exportName);
      if (!canResize(info)) {
        throw new BlksnapError(
          'EOPNOTSUPP',
          `the kernel cannot (want 6.16 or newer), so ${pathOf(info.id)} keeps its size; ` +
            `detach and attach "${wish.exportName}" to have it with the new one`,
        );
      }
      await control.updateSize(info.id, size);
    });
  }

  async remove(wishId: string): Promise<void> {
    // Without the driver there is nothing to take down.
    if (!fs.existsSync(CONTROL_PATH)) return;
    await this.#controlling('Cannot take a kernel device down', async (control) => {
      const info = await find(control, wishId);
      if (info !== null) await this.#takeDown(control, info.id);
    });
  }

  /** Stopping waits for the requests under way, or fails them when nobody serves them. */
  async #takeDown(control: UblkControl, id: number): Promise<void> {
    await control.stop(id);
    await this.#server.ended(id);
    await control.delete(id);
  }

  async #controlling<T>(action: string, work: (control: UblkControl) => Promise<T>): Promise<T> {
    const control = UblkControl.open();
    try {
      return await work(control);
    } catch (cause) {
      throw toBlksnapError(cause, action);
    } finally {
      control.close();
    }
  }
}

const pathOf = (id: number): string => `/dev/ublkb${id}`;

function numberOf(path: string): number {
  const digits = /^\/dev\/ublkb(\d{1,6})$/.exec(path)?.[1];
  return digits === undefined ? ANY_ID : Number(digits);
}

/** 64 bits that only this id has. */
function markOf(wishId: string): bigint {
  return crypto.createHash('sha256').update(`blksnap ${wishId}`).digest().readBigUInt64LE(0);
}

const canResize = ({ flags }: DeviceInfo): boolean => (flags & UPDATE_SIZE) !== 0;

/** The device that was made for this wish, by whatever daemon. */
async function find(control: UblkControl, wishId: string): Promise<DeviceInfo | null> {
  const mark = markOf(wishId);
  const names = fs.existsSync(DEVICE_CLASS) ? fs.readdirSync(DEVICE_CLASS) : [];
  for (const name of names) {
    const id = /^ublkc(\d+)$/.exec(name)?.[1];
    if (id === undefined) continue;
    const info = await control.info(Number(id)).catch((cause: unknown) => {
      // Gone in between, somebody else's to look at, or of a kind that we do not make.
      if (['ENODEV', 'EINVAL', 'EACCES', 'EPERM', 'EBADMSG'].includes(toBlksnapError(cause).code)) return null;
      throw cause;
    });
    if (info?.mark === mark) return info;
  }
  return null;
}

/** Waits until the kernel has seen that the server is dead. Errors: EBUSY when it is not. */
async function takeOver(control: UblkControl, { id, pid }: DeviceInfo): Promise<void> {
  for (const untilMs = performance.now() + DEATH_LIMIT_MS; ; await sleep(DEATH_POLL_MS)) {
    try {
      return await control.startRecovery(id);
    } catch (cause) {
      if (toBlksnapError(cause).code !== 'EBUSY') throw cause;
      if (performance.now() < untilMs) continue;
      throw new BlksnapError('EBUSY', `process ${pid} serves ${pathOf(id)} still; end it first`, { cause });
    }
  }
}

/** Keeps one tag free for ever: kernels before 6.15 hear of a server's death by a tag that waits for a request, and when
 *  it dies with all of them busy, its device is stuck. Without a scheduler, since the disk below has one of its own. */
function keepOneTag(id: number): void {
  const queue = `/sys/block/ublkb${id}/queue`;
  fs.writeFileSync(`${queue}/scheduler`, 'none');
  fs.writeFileSync(`${queue}/nr_requests`, String(QUEUE_DEPTH - 1));
}
