/** The volumes of a daemon that are attached while in use (docs/live-attach.md): which may be, and how each is attached,
 *  given back, and found again after whatever end the last daemon had. The caller sees to it that operations on one disk
 *  follow one another. */

import fs from 'node:fs';
import { dirname } from 'node:path';
import { underlyingPath } from '../blksnap/underlying.ts';
import { liveTable } from '../kernel/dmsetup.ts';
import { deviceNumber, devicesBelow, findMapperDevice } from '../kernel/mapper-device.ts';
import type { MapperDevice } from '../kernel/mapper-device.ts';
import type { Via } from '../kernel/provider.ts';
import { refuseUnrepeatable } from '../kernel/volume-table.ts';
import { refuseOwnVolume } from '../kernel/volume-users.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import type { Host } from './host.ts';
import type { DiskInfo, IoCalls } from './io-protocol.ts';
import type { KernelDevices } from './kernel-devices.ts';
import { LiveVolume } from './live-volume.ts';
import type { DiskState, LiveState } from './state.ts';

/** What the disks do for it. */
export interface LiveOwner {
  /** Of the disk's change map. */
  cbtPath(name: string): string;
  /** Durable when it returns. */
  remember(name: string, live: LiveState): void;
}

/** How the volume of a disk got its own table back. */
export interface GivenBack {
  readonly disk: string;
  readonly volume: string;
  /** Null: it has it. */
  readonly failure: BlksnapError | null;
}

/** A disk that has a volume. */
export type LiveDiskState = DiskState & { readonly live: LiveState };

export function isLive(state: DiskState): state is LiveDiskState {
  return state.live !== null;
}

export class LiveDisks {
  readonly #host: Host;
  readonly #devices: KernelDevices;
  readonly #owner: LiveOwner;
  readonly #volumes = new Map<string, LiveVolume>();
  /** By disk: the node of its kernel device. */
  readonly #nodes = new Map<string, string>();

  /** The kind of kernel device that was asked for. */
  readonly #vias = new Map<string, Via>();

  constructor(host: Host, devices: KernelDevices, owner: LiveOwner) {
    this.#host = host;
    this.#devices = devices;
    this.#owner = owner;
  }

  /** Errors: EROFS, EBUSY, EOPNOTSUPP for a volume that cannot be attached while in use, with the next step. */
  async check(volume: MapperDevice, { force }: { readonly force: boolean }): Promise<void> {
    const { name, number, node, readOnly, suspended } = volume;
    if (readOnly) {
      throw new BlksnapError(
        'EROFS',
        `Cannot attach "${name}" while it is in use: it is read-only, nothing changes it`,
      );
    }
    if (suspended) {
      throw new BlksnapError('EBUSY', `Cannot attach "${name}" while it is suspended; see dmsetup resume`);
    }
    const { run, state } = this.#host.paths;
    refuseOwnVolume({ volume: name, number, directories: [run, state], force });
    const stored = await this.#host.io.call('snapshots', {});
    for (const { id, places } of stored) {
      const place = places.find(({ path }) => fs.existsSync(path) && underlyingPath(path).all.has(`device ${number}`));
      if (place === undefined) continue;
      throw new BlksnapError(
        'EBUSY',
        `Cannot attach "${name}" while it is in use: "${place.path}", where snapshot ${id} keeps its storage, lies on it; destroy it first`,
      );
    }
    refuseUnrepeatable(node, await liveTable(name));
  }

  /** Brings a volume under the disk, undoing everything when that fails. Errors: what a step fails with; when undoing
   *  failed too, the state that was remembered leads there later. */
  async attach(state: LiveDiskState, via?: Via): Promise<DiskInfo> {
    const { name } = state;
    if (via !== undefined) this.#vias.set(name, via);
    const volume = this.#volume(state);
    try {
      await volume.reach('attached');
      const info = (await this.#host.io.call('disks', {})).find((one) => one.name === name);
      if (info === undefined) throw new BlksnapError('ENODEV', `Disk "${name}" is not served although its volume is`);
      volume.aim('attached');
      return info;
    } catch (cause) {
      if (volume.state.goal === 'original') await this.#undo(volume, name, cause);
      throw cause;
    }
  }

  async #undo(volume: LiveVolume, name: string, cause: unknown): Promise<void> {
    try {
      await volume.reach('original');
      this.#volumes.delete(name);
    } catch (another) {
      const words = `${toBlksnapError(cause).message}; and undoing that: ${toBlksnapError(another).message}`;
      throw new BlksnapError(toBlksnapError(another).code, words, { cause: another });
    }
  }

  /** Gives the volume its table back, for good. */
  async detach(state: LiveDiskState, { force }: { readonly force: boolean }): Promise<void> {
    const volume = this.#volume(state);
    await this.#onServed('checkDetach', { name: state.name, force });
    volume.aim('original');
    await volume.reach('original');
    this.#volumes.delete(state.name);
  }

  /** Whether nothing of the disk is left to undo. */
  isGone(name: string): boolean {
    return !this.#volumes.has(name);
  }

  /** Whether an attach or detach was cut short, and its volume shall have its own table. */
  isUndone({ live }: LiveDiskState): boolean {
    return live.goal === 'original';
  }

  /** The daemon ends: every volume gets its table back, and is attached again at the next start. One that cannot be
   *  given back keeps its I/O waiting for the next daemon. */
  async release(): Promise<GivenBack[]> {
    const given: GivenBack[] = [];
    for (const [disk, { state }] of this.#volumes) {
      const failure = await this.#release(disk);
      given.push({ disk, volume: state.volume, failure });
      if (failure === null) this.#host.log.info({ disk, volume: state.volume }, 'table given back');
      else this.#host.log.error({ disk, error: failure.message }, 'cannot give the table back');
    }
    this.#volumes.clear();
    return given;
  }

  async #release(name: string): Promise<BlksnapError | null> {
    try {
      await this.#volumes.get(name)!.reach('original');
      return null;
    } catch (cause) {
      return toBlksnapError(cause);
    }
  }

  /** The disks among the names whose volume somebody else has given another table, so that writes pass by. */
  strayed(): string[] {
    return [...this.#volumes.keys()].filter((name) => this.#isStray(name));
  }

  #isStray(name: string): boolean {
    const { state } = this.#volumes.get(name)!;
    const device = this.#deviceNumber(name);
    if (device === null || state.goal !== 'attached') return false;
    const volume = findMapperDevice(state.volume);
    const below = volume === null ? [device] : devicesBelow(volume.number);
    return below.length !== 1 || below[0] !== device;
  }

  /** Whether the disk's volume leads to us after all. */
  async leadsToUs(name: string): Promise<boolean> {
    return (await this.#volumes.get(name)?.isAttached()) ?? true;
  }

  /** What the daemon itself reads or writes must not wait for the daemon. Errors: EINVAL. */
  refusePlace(path: string): void {
    if (!path.startsWith('/') || this.#volumes.size === 0) return;
    // A file that is still to be made lies where its directory does.
    const place = [path, dirname(path)].find((one) => fs.existsSync(one));
    if (place === undefined) return;
    const { all } = underlyingPath(place);
    for (const [name, { state }] of this.#volumes) {
      const volume = findMapperDevice(state.volume);
      if (volume === null || !all.has(`device ${volume.number}`)) continue;
      throw new BlksnapError(
        'EINVAL',
        `Cannot use "${path}": it lies on volume "${state.volume}", which is attached in use as disk "${name}"; name another place`,
      );
    }
  }

  #deviceNumber(name: string): string | null {
    const node = this.#nodes.get(name);
    return node === undefined ? null : deviceNumber(node);
  }

  /** Errors: as LiveServing.serve; nothing is served then. */
  async #serve(state: LiveDiskState, node: string): Promise<void> {
    const { name } = state;
    await this.#open(state, node);
    try {
      // One that waits for its daemon, or a new one.
      if (this.#devices.view(name) !== null) await this.#devices.retry(name);
      else await this.#devices.add(name, { kernelDevice: true, via: this.#vias.get(name) }, { wanted: true });
      const device = this.#devices.view(name)?.path ?? null;
      if (device === null) throw new BlksnapError('ENODEV', `Disk "${name}" has no kernel device`);
      this.#nodes.set(name, device);
    } catch (cause) {
      await this.#onServed('detach', { name, force: true });
      throw cause;
    }
  }

  /** A volume whose I/O waits must not wait for a change map that cannot be opened. */
  async #open(state: LiveDiskState, node: string): Promise<void> {
    const args = { ...state, path: node, originPrivate: true };
    try {
      await this.#host.io.call('attach', { ...args, cbtPath: this.#owner.cbtPath(state.name) });
    } catch (cause) {
      this.#host.log.warn({ disk: state.name, error: toBlksnapError(cause).message }, 'tries without its change map');
      await this.#host.io.call('attach', { ...args, cbtPath: null });
    }
  }

  async #withdraw(name: string): Promise<void> {
    await this.#onServed('checkDetach', { name, force: true });
    await this.#devices.remove(name);
    this.#nodes.delete(name);
    await this.#onServed('detach', { name, force: true });
  }

  async #onServed<Name extends 'detach' | 'checkDetach'>(call: Name, args: IoCalls[Name]['args']): Promise<void> {
    const served = (await this.#host.io.call('disks', {})).some(({ name }) => name === args.name);
    if (served) await this.#host.io.call(call, args);
  }

  #volume(state: LiveDiskState): LiveVolume {
    const { name, live } = state;
    const known = this.#volumes.get(name);
    if (known !== undefined) return known;
    const made = new LiveVolume(
      live,
      {
        device: () => this.#deviceNumber(name),
        serve: (node) => this.#serve(state, node),
        withdraw: () => this.#withdraw(name),
        remember: (changed) => this.#owner.remember(name, changed),
      },
      this.#host.log,
    );
    this.#volumes.set(name, made);
    return made;
  }
}
