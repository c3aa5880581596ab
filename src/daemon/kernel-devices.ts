/** The kernel devices of a daemon: which exports have one, or should, and by which provider. They are remembered, so
 *  that a daemon that comes back takes up those that its predecessor left, also when it was killed: the kernel holds
 *  their requests meanwhile. Devices of snapshots end with the snapshots.
 *
 *  Calls about one disk follow one another by the caller's care. */

import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { z } from 'zod';
import { holdDevice } from '../kernel/hold.ts';
import { NbdProvider } from '../kernel/nbd.ts';
import { VIAS } from '../kernel/provider.ts';
import type { KernelDeviceProvider, Via } from '../kernel/provider.ts';
import { UblkProvider } from '../kernel/ublk.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { inTime } from '../util/in-time.ts';
import { wholeDisk } from './disk-names.ts';
import type { Host } from './host.ts';
import type { DeviceRequest } from './requests.ts';
import { loadJson, saveJson } from './json-file.ts';
import type { KernelDeviceView } from './views.ts';
import { guardWritePath } from './write-path.ts';

interface Entry {
  readonly id: string;
  readonly via: Via;
  /** Null until the kernel has said it. */
  path: string | null;
  failure: BlksnapError | null;
}

const stateSchema = z.strictObject({
  version: z.literal(1),
  devices: z.array(
    z.strictObject({ exportName: z.string(), id: z.string(), via: z.enum(VIAS), path: z.string().nullable() }),
  ),
});

const ADVICE = 'repair it, or move it away and attach with --dev again';
/** A device whose server does not answer must not keep the daemon from ending. */
const STOP_HOLD_MS = 5000;

/** A device that is out of use: it is taken down, or given back. */
interface Held {
  readonly exportName: string;
  readonly release: () => Promise<void>;
}

export class KernelDevices {
  readonly #host: Host;
  readonly #file: string;
  readonly #providers: ReadonlyMap<Via, KernelDeviceProvider>;
  readonly #entries = new Map<string, Entry>();
  #stopping = false;

  constructor(host: Host) {
    this.#host = host;
    this.#file = path.join(host.paths.state, 'kernel-devices.json');
    const nbd = new NbdProvider(
      (exportName, fd) => host.io.call('serveKernel', { exportName, fd }),
      (exportName) => host.io.call('describeExport', { exportName }),
    );
    const ublk = new UblkProvider({
      driver: host.io.ready.driver,
      serve: (exportName, shape) => host.io.call('serveUblk', { exportName, ...shape }),
      ended: (id) => host.io.call('ublkEnded', { id }),
      describe: (exportName) => host.io.call('describeDevice', { exportName }),
    });
    this.#providers = new Map<Via, KernelDeviceProvider>([
      [ublk.via, ublk],
      [nbd.via, nbd],
    ]);
  }

  /** Of an export; null when it has none and needs none. */
  view(exportName: string): KernelDeviceView | null {
    const entry = this.#entries.get(exportName);
    if (entry === undefined) return null;
    const { via, path: device, failure } = entry;
    return {
      path: failure === null ? device : null,
      via,
      failure: failure === null ? null : { code: failure.code, message: failure.message },
    };
  }

  /** Paths of the kernel devices of these disks and partitions, as far as they have some. */
  pathsOf(names: readonly string[]): string[] {
    const paths = names.map((name) => {
      const whole = this.view(wholeDisk(name))?.path ?? '';
      return name === wholeDisk(name) ? whole : `${whole}p${name.slice(wholeDisk(name).length + 1)}`;
    });
    return paths.filter((device) => fs.existsSync(device));
  }

  /** How many exports have one. */
  get size(): number {
    return this.#entries.size;
  }

  /** Makes the device of an export, where one is asked for: explicitly, or by default, which is where `natural` says that
   *  people expect one and the kernel has what it takes. Errors, where it is asked for explicitly: EPERM, EOPNOTSUPP,
   *  what the kernel says; nothing has changed then. */
  async add(
    exportName: string,
    { kernelDevice, via }: DeviceRequest,
    natural: { readonly wanted: boolean; readonly via?: Via | undefined },
  ): Promise<void> {
    const asked = kernelDevice === true || (via !== undefined && kernelDevice !== false);
    if (!asked && (kernelDevice === false || !natural.wanted)) return;
    const provider = this.#choose(via ?? natural.via, asked);
    if (provider === null) return;
    const entry: Entry = { id: crypto.randomUUID(), via: provider.via, path: null, failure: null };
    this.#entries.set(exportName, entry);
    try {
      this.#save();
      await this.#make(exportName, entry, provider);
    } catch (cause) {
      this.#entries.delete(exportName);
      this.#save();
      if (asked) throw toBlksnapError(cause);
      this.#host.log.warn({ export: exportName, error: (cause as Error).message }, 'no kernel device');
    }
  }

  /** Null: none can be had, and nobody asked. */
  #choose(via: Via | undefined, asked: boolean): KernelDeviceProvider | null {
    const candidates = via === undefined ? [...this.#providers.values()] : [this.#providers.get(via)!];
    const obstacles = candidates.map((provider) => provider.obstacle({ load: asked }));
    const found = candidates.find((_, index) => obstacles[index] === null);
    if (found !== undefined) return found;
    if (asked) throw obstacles.at(-1)!;
    return null;
  }

  async #make(exportName: string, entry: Entry, provider: KernelDeviceProvider): Promise<void> {
    await guardWritePath(this.#host);
    const preferred = entry.path;
    entry.path = await provider.create({ id: entry.id, exportName }, { preferred });
    entry.failure = null;
    if (entry.path !== preferred) this.#save();
    this.#host.log.info({ export: exportName, device: entry.path }, 'kernel device made');
  }

  /** After a start, when all exports are there that outlived the last daemon: takes up the devices that it left, makes
   *  those that went with it, and takes down those whose exports are gone. */
  async restore(): Promise<void> {
    const { devices } = loadJson(this.#file, stateSchema, ADVICE) ?? { devices: [] };
    for (const { exportName, id, via, path: device } of devices) {
      const entry: Entry = { id, via, path: device, failure: null };
      this.#entries.set(exportName, entry);
      try {
        await this.#restoreOne(exportName, entry);
      } catch (cause) {
        entry.failure = toBlksnapError(cause);
        this.#host.log.error({ export: exportName, device, error: entry.failure.message }, 'kernel device is down');
      }
    }
    if (devices.length > 0) this.#save();
  }

  async #restoreOne(exportName: string, entry: Entry): Promise<void> {
    const provider = this.#providers.get(entry.via)!;
    const isThere = await this.#host.io.call('describeExport', { exportName }).then(
      () => true,
      () => false,
    );
    // A disk that could not be attached may come later; an image never does.
    if (!isThere && exportName.includes('@')) {
      await provider.remove(entry.id);
      this.#entries.delete(exportName);
      return;
    }
    if (!isThere) throw new BlksnapError('ENODEV', `Disk "${exportName}" is not served`);
    const obstacle = provider.obstacle({ load: true });
    if (obstacle !== null) throw obstacle;
    await guardWritePath(this.#host);
    const reconnected = await provider.reconnect({ id: entry.id, exportName });
    if (reconnected === null) await this.#make(exportName, entry, provider);
    else this.#host.log.info({ export: exportName, device: reconnected }, 'kernel device goes on');
  }

  /** A disk that failed at the start is served after all. */
  async retry(exportName: string): Promise<void> {
    const entry = this.#entries.get(exportName);
    if (entry === undefined || entry.failure === null) return;
    entry.failure = null;
    await this.#restoreOne(exportName, entry);
  }

  /** The server's end of a device's connection has ended though the daemon lives. */
  async lost(exportName: string): Promise<void> {
    const key = `disk ${wholeDisk(exportName.replace(/@.*/, ''))}`;
    await this.#host.serial.run([key], async () => {
      const entry = this.#entries.get(exportName);
      if (this.#stopping || entry === undefined) return;
      const wish = { id: entry.id, exportName };
      try {
        const again = await this.#providers.get(entry.via)!.reconnect(wish);
        if (again !== null) this.#host.log.warn({ export: exportName, device: again }, 'kernel device connected again');
      } catch (cause) {
        this.#host.log.error({ export: exportName, error: toBlksnapError(cause).message }, 'kernel device is down');
      }
    });
  }

  /** Takes the devices of these exports out of use, or none of them. Errors: EBUSY, with who uses it, unless forced. */
  async hold(
    exportNames: readonly string[],
    { dataStays, force = false }: { readonly dataStays: boolean; readonly force?: boolean },
  ): Promise<Held[]> {
    const held: Held[] = [];
    try {
      for (const exportName of exportNames) {
        const device = this.view(exportName)?.path ?? null;
        const nothing = async (): Promise<void> => {};
        const isThere = device !== null && fs.existsSync(device);
        const holding = isThere ? holdDevice(device, { dataStays }) : Promise.resolve(nothing);
        held.push({ exportName, release: await (force ? holding.catch(() => nothing) : holding) });
      }
      return held;
    } catch (cause) {
      for (const { release } of held) await release();
      throw cause;
    }
  }

  /** Takes down what is held, and forgets it. */
  async removeHeld(held: readonly Held[]): Promise<void> {
    for (const { exportName, release } of held) {
      await this.remove(exportName);
      await release();
    }
  }

  /** Takes a device down, used or not. */
  async remove(exportName: string): Promise<void> {
    const entry = this.#entries.get(exportName);
    if (entry === undefined) return;
    await this.#providers.get(entry.via)!.remove(entry.id);
    this.#entries.delete(exportName);
    this.#save();
    this.#host.log.info({ export: exportName, device: entry.path }, 'kernel device taken down');
  }

  async resized(exportName: string): Promise<void> {
    const entry = this.#entries.get(exportName);
    if (entry !== undefined) await this.#providers.get(entry.via)!.resize({ id: entry.id, exportName });
  }

  /** The daemon ends in order: devices of snapshots go; those of disks that nobody uses go and come back with the next
   *  daemon; those in use stay, and wait for it. */
  async stop(): Promise<void> {
    this.#stopping = true;
    if (this.#entries.size === 0) return;
    for (const [exportName, entry] of this.#entries) {
      const provider = this.#providers.get(entry.via)!;
      try {
        if (exportName.includes('@')) {
          await provider.remove(entry.id);
          this.#entries.delete(exportName);
          continue;
        }
        const held = await inTime(this.hold([exportName], { dataStays: true }), STOP_HOLD_MS, silent);
        await provider.remove(entry.id);
        for (const { release } of held) await release();
      } catch (cause) {
        this.#host.log.warn({ device: entry.path, reason: (cause as Error).message }, 'waits for the next daemon');
      }
    }
    this.#save();
  }

  #save(): void {
    const devices = [...this.#entries].map(([exportName, { id, via, path: device }]) => ({
      exportName,
      id,
      via,
      path: device,
    }));
    saveJson(this.#file, { version: 1, devices });
  }
}

function silent(): BlksnapError {
  return new BlksnapError('ETIMEDOUT', 'it does not answer');
}
