/** Mapped devices and redirected ranges, control side: what the API asks for. Each device is a disk under its name.
 *
 *  Operations on one mapped device follow one another, but not those on its disk: a take waits for bios that a
 *  suspended device holds, and the resume must not wait for the take. */

import { BlksnapError } from '../util/errors.ts';
import { checkName, wholeDisk } from './disk-names.ts';
import type { Disks } from './disks.ts';
import type { Host } from './host.ts';
import type { IoCalls } from './io-protocol.ts';
import { mappedStateFile } from './mapped-state.ts';
import type { State } from './state.ts';
import type { DiskView, MappedDevicesView, MappedView } from './views.ts';

export class Mapped {
  readonly #host: Host;
  readonly #disks: Disks;

  constructor(host: Host, disks: Disks) {
    this.#host = host;
    this.#disks = disks;
  }

  /** Makes what is remembered. A device that cannot be made, or a disk whose redirected ranges cannot, is failed. */
  async restore(kept: State['mapped']): Promise<void> {
    const stateFile = mappedStateFile(this.#host.paths);
    const filters = new Map(kept.map((one) => [one.name, one.filters]));
    for (const { kind, name, error } of await this.#host.io.call('dmRestore', { stateFile, filters })) {
      const failure = error === null ? null : new BlksnapError(error.code, error.message);
      if (kind === 'device') this.#disks.adopt(name, { failure, filters: filters.get(name) ?? [] });
      else if (failure !== null) this.#disks.fail(name, failure);
      if (failure !== null) this.#host.log.error({ disk: name, error: failure.message }, 'cannot be mapped again');
    }
  }

  async list(): Promise<MappedDevicesView> {
    const { devices, remaps } = await this.#host.io.call('dmList', {});
    return { devices: devices.sort((a, b) => (a.name < b.name ? -1 : 1)), remaps };
  }

  /** Errors: ENOENT. */
  async get(name: string): Promise<MappedView> {
    const { devices } = await this.list();
    const device = devices.find((one) => one.name === name);
    if (device !== undefined) return device;
    const known = devices.map((one) => one.name).join(', ') || 'none';
    throw new BlksnapError('ENOENT', `No mapped device "${name}": there are ${known}`);
  }

  /** Errors: EINVAL for a table that is wrong; EEXIST; EBUSY for ranges that are used; ENOENT. */
  async create(name: string, table: string): Promise<DiskView> {
    checkName(name, 'give another');
    return await this.#host.serial.run([`disk ${name}`, `mapped ${name}`], async () => {
      this.#disks.checkNew(name);
      const filters = this.#disks.filtersOfFailed(name);
      await this.#host.io.call('dmCreate', { name, table, filters });
      this.#disks.adopt(name, { failure: null, filters });
      this.#host.log.info({ disk: name, table }, 'mapped device made');
      return await this.#disks.get(name);
    });
  }

  /** Loads the inactive table. `sameData`: it shows the data that the live one does. */
  async load(name: string, request: { readonly table: string; readonly sameData: boolean }): Promise<MappedView> {
    return await this.#change(name, 'table loaded', () => this.#host.io.call('dmLoad', { name, ...request }));
  }

  /** Holds bios; resolves when none is under way. */
  async suspend(name: string): Promise<MappedView> {
    return await this.#change(name, 'suspended', () => this.#host.io.call('dmSuspend', { name }));
  }

  /** Errors: EBUSY when the inactive table has other data and a snapshot is held. */
  async resume(name: string): Promise<MappedView> {
    return await this.#change(name, 'resumed', () => this.#host.io.call('dmResume', { name }));
  }

  async message(name: string, message: { readonly sector: number; readonly text: string }): Promise<string> {
    return await this.#host.io.call('dmMessage', { name, ...message });
  }

  async #change(name: string, what: string, change: () => Promise<void>): Promise<MappedView> {
    return await this.#host.serial.run([`mapped ${name}`], async () => {
      await this.get(name);
      await change();
      this.#host.log.info({ disk: name }, what);
      return await this.get(name);
    });
  }

  /** Redirects a range of a disk into a mapped device. With `copy` its data moves along. */
  async remap(request: IoCalls['dmRemap']['args']): Promise<void> {
    const { disk, to } = request;
    this.#disks.check(disk);
    await this.#host.serial.run([`disk ${wholeDisk(disk)}`, `disk ${wholeDisk(to)}`], async () => {
      await this.#host.io.call('dmRemap', request);
      this.#host.log.info(request, 'range redirected');
    });
  }

  /** Takes a redirected range back. */
  async unmap(request: IoCalls['dmUnmap']['args']): Promise<void> {
    this.#disks.check(request.disk);
    await this.#host.serial.run([`disk ${wholeDisk(request.disk)}`], async () => {
      await this.#host.io.call('dmUnmap', request);
      this.#host.log.info(request, 'range taken back');
    });
  }
}
