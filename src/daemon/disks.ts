/** What can be done with the disks of a daemon (disk-entries.ts knows which there are). Operations on one disk follow one
 *  another; operations on others run beside them. */

import fs from 'node:fs';
import path from 'node:path';
import type { ByteRange } from '../backup/ranges.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { DiskEntries } from './disk-entries.ts';
import { checkName, defaultName, realPath, wholeDisk } from './disk-names.ts';
import { mapperDeviceAt } from '../kernel/mapper-device.ts';
import type { MapperDevice } from '../kernel/mapper-device.ts';
import type { Host } from './host.ts';
import type { KernelDevices } from './kernel-devices.ts';
import type { AttachedFilter, DiskInfo } from './io-protocol.ts';
import { diskView, failureOf } from './disk-view.ts';
import type { Entry } from './disk-view.ts';
import { LiveDisks, isLive } from './live-disks.ts';
import type { GivenBack, LiveDiskState } from './live-disks.ts';
import { newLiveState } from './live-volume.ts';
import type { AttachRequest, MountRequest } from './requests.ts';
import { asKept, isKeptOf, keptFilters } from './kept-filters.ts';
import type { DiskState, KeptFilter } from './state.ts';
import type { DiskView, FilterView } from './views.ts';

export class Disks {
  readonly #host: Host;
  readonly #devices: KernelDevices;
  readonly #entries: DiskEntries;
  readonly #live: LiveDisks;

  constructor(host: Host, devices: KernelDevices) {
    this.#host = host;
    this.#devices = devices;
    this.#entries = new DiskEntries(host.paths.stateFile);
    this.#live = new LiveDisks(host, devices, {
      cbtPath: (name) => this.#cbtPath(name),
      remember: (name, live) => this.#entries.keepLive(name, live),
    });
  }

  get size(): number {
    return this.#entries.size;
  }

  /** How many should be served and are not. */
  get failed(): number {
    return this.#entries.failed;
  }

  /** Those whose volumes are in use. */
  get liveNames(): Set<string> {
    return this.#entries.liveNames;
  }

  /** Attaches a disk that is remembered. Where that fails, `list` tells why. */
  async restore(state: DiskState): Promise<void> {
    const entry: Entry = { kind: 'disk', state, failure: null };
    this.#entries.set(state.name, entry);
    try {
      const { cbt } = isLive(state) ? await this.#live.attach(state) : await this.#open(state);
      this.#host.log.info({ disk: state.name, path: state.path, history: cbt.reason || 'goes on' }, 'attached again');
    } catch (cause) {
      entry.failure = toBlksnapError(cause);
      this.#host.log.error(
        { disk: state.name, path: state.path, error: entry.failure.message },
        'cannot be attached again',
      );
    }
  }

  /** Takes up a mapped device, made or not. */
  adopt(name: string, known: { readonly failure: BlksnapError | null; filters: readonly KeptFilter[] }): void {
    this.#entries.set(name, { kind: 'mapped', ...known });
  }

  /** Another try at a mapped device that could not be made must not lose its filters. */
  filtersOfFailed(name: string): readonly KeptFilter[] {
    const entry = this.#entries.find(name);
    return entry === undefined ? [] : keptFilters(entry);
  }

  /** A disk that was attached is not served after all. */
  fail(name: string, failure: BlksnapError): void {
    const entry = this.#entries.find(name);
    if (entry?.kind === 'disk') entry.failure = failure;
  }

  /** Errors: EEXIST when the name is taken. */
  checkNew(name: string): void {
    const entry = this.#entries.find(name);
    if (entry?.kind === 'mapped' && entry.failure !== null) return;
    this.#entries.checkFree(name, null);
  }

  /** Errors: ENOENT when there is no disk of that name. */
  check(name: string): void {
    this.#entries.get(name);
  }

  /** Every disk, by name. */
  async list(): Promise<DiskView[]> {
    const infos = new Map((await this.#host.io.call('disks', {})).map((info) => [info.name, info]));
    const names = new Set([...this.#entries.names, ...infos.keys()]);
    // One that is just being attached or detached is nobody's.
    const known = [...names].filter((name) => this.#entries.find(wholeDisk(name)) !== undefined);
    const views = known.map((name) => this.#view(name, this.#entries.get(name), infos.get(name)));
    return views.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** Errors: ENOENT. */
  async get(name: string): Promise<DiskView> {
    this.#entries.get(name);
    const view = (await this.list()).find((candidate) => candidate.name === name);
    if (view === undefined) throw this.#entries.missing(name);
    return view;
  }

  /** Serves a file or device under a name. Errors: ENOENT, EISDIR, …: what the path fails with; EALREADY
   *  when it is served; EEXIST when the name is taken; EBUSY when somebody else uses it. */
  async attach(request: AttachRequest): Promise<DiskView> {
    const mapper = mapperDeviceAt(request.path);
    const volume = request.readOnly === true || request.kernelDevice === false ? null : mapper;
    const real = mapper === null ? realPath(request.path) : mapper.path;
    const name = request.name ?? this.#entries.failedAt(real) ?? (mapper === null ? defaultName(real) : mapper.name);
    checkName(name, 'give one with --name');
    const state: DiskState = {
      name,
      path: real,
      readOnly: request.readOnly ?? false,
      direct: volume !== null || (request.direct ?? false),
      mappable: request.mappable ?? false,
      filters: this.#entries.filtersOf(name, real),
      live: volume === null ? null : newLiveState(volume),
    };
    return await this.#host.serial.run([`disk ${name}`, `path ${real}`], async () => {
      this.#entries.checkFree(name, real);
      if (volume !== null) return await this.#attachVolume(volume, state, request);
      const info = await this.#open(state);
      const entry: Entry = { kind: 'disk', state, failure: null };
      this.#entries.set(name, entry);
      try {
        this.#entries.save();
      } catch (cause) {
        this.#entries.delete(name);
        await this.#host.io.call('detach', { name });
        throw cause;
      }
      this.#host.log.info({ disk: name, path: real }, 'attached');
      await this.#addDevice(name, request, real);
      return this.#view(name, entry, info);
    });
  }

  /** Serves a restore point as a writable disk. What is written to it goes when it is detached or the daemon ends. */
  async mount(request: MountRequest): Promise<DiskView> {
    const directory = realPath(request.directory);
    const name = request.name ?? `${request.disk.replace('/', '-')}-mount`;
    checkName(name, 'give another');
    return await this.#host.serial.run([`disk ${name}`], async () => {
      this.#entries.checkFree(name, null);
      const { disk, point = null } = request;
      const overlayDirectory = this.#host.paths.state;
      const info = await this.#host.io.call('mount', { name, directory, disk, point, overlayDirectory });
      const entry: Entry = { kind: 'mount', directory, point: info.point, filters: [] };
      this.#entries.set(name, entry);
      this.#host.log.info({ disk: name, directory, point: info.point }, 'mounted');
      return this.#view(name, entry, info);
    });
  }

  /** Ends serving a disk and forgets its change history. Errors: ENOENT; EBUSY while a snapshot of it is held, or a
   *  client is connected and `force` does not cut it off. */
  async detach(name: string, force = false): Promise<void> {
    if (name !== wholeDisk(name)) {
      throw new BlksnapError('EINVAL', `Cannot detach partition "${name}" by itself: detach disk "${wholeDisk(name)}"`);
    }
    await this.#host.serial.run([`disk ${name}`], async () => {
      const entry = this.#entries.get(name);
      if (entry.kind === 'disk' && isLive(entry.state)) await this.#live.detach(entry.state, { force });
      else await this.#detachHeld(name, entry, force);
      await this.#forget(name, entry);
    });
  }

  async #detachHeld(name: string, entry: Entry, force: boolean): Promise<void> {
    const held = await this.#devices.hold([name], { dataStays: true, force });
    try {
      if (failureOf(entry) === null) await this.#host.io.call('detach', { name, force });
      else if (entry.kind === 'mapped') await this.#host.io.call('dmForget', { name });
    } catch (cause) {
      for (const { release } of held) await release();
      throw cause;
    }
    await this.#devices.removeHeld(held);
  }

  async #forget(name: string, entry: Entry): Promise<void> {
    this.#entries.delete(name);
    if (entry.kind !== 'mount') this.#entries.save();
    if (entry.kind === 'disk') fs.rmSync(this.#cbtPath(name), { force: true });
    await this.#host.rules.forget(name);
    this.#host.log.info({ disk: name }, 'detached');
  }

  /** Gives a disk that was just attached its kernel device. Errors: as KernelDevices.add; the disk is then detached. */
  async #addDevice(name: string, request: AttachRequest, real: string): Promise<void> {
    try {
      if (this.#devices.view(name) !== null) await this.#devices.retry(name);
      else await this.#devices.add(name, request, { wanted: fs.statSync(real).isBlockDevice() });
    } catch (cause) {
      await this.#host.io.call('detach', { name, force: true });
      await this.#forget(name, this.#entries.get(name));
      throw cause;
    }
  }

  /** Reads a disk's partition table anew: the disk and its partitions. Errors: ENOENT; EBUSY when a partition that
   *  is in use would have to go; what a partition's filter fails with. */
  async rescan(name: string): Promise<DiskView[]> {
    return await this.#host.serial.run([`disk ${wholeDisk(name)}`], async () => {
      const entry = this.#entries.get(name);
      const infos = await this.#host.io.call('rescan', { name: wholeDisk(name), filters: keptFilters(entry) });
      for (const warning of infos[0]?.partitionTable?.warnings ?? []) this.#host.log.warn({ disk: name }, warning);
      return infos.map((info) => this.#view(info.name, entry, info));
    });
  }

  /** Takes over the size that a disk's file or device has now. Clients learn it when they connect again.
   *  Errors: ENOENT; EOPNOTSUPP where the size cannot change; EINVAL for one that a disk cannot have. */
  async resize(name: string): Promise<DiskView> {
    return await this.#host.serial.run([`disk ${wholeDisk(name)}`], async () => {
      const entry = this.#entries.get(name);
      const info = await this.#host.io.call('resize', { name });
      await this.#devices.resized(wholeDisk(name));
      this.#host.log.info({ disk: name, size: info.size }, 'resized');
      return this.#view(name, entry, info);
    });
  }

  /** As detach, of a mapped device alone. */
  async removeMapped(name: string): Promise<void> {
    if (this.#entries.get(name).kind !== 'mapped' || name !== wholeDisk(name)) {
      throw new BlksnapError('EINVAL', `Cannot remove "${name}": it is no mapped device; detach it`);
    }
    await this.detach(name);
  }

  // --- clients --------------------------------------------------------------------------------

  /** Those that may use the disk beside its owner; null where nobody said. Errors: ENOENT. */
  clients(name: string): readonly string[] | null {
    this.#checkWhole(name);
    return this.#host.rules.of(name);
  }

  /** Errors: ENOENT; EINVAL. */
  async allow(name: string, client: string): Promise<void> {
    await this.#host.serial.run([`disk ${name}`], async () => {
      this.#checkWhole(name);
      await this.#host.rules.allow(name, client);
    });
  }

  /** Errors: ENOENT for the disk, or a client that is not allowed to use it. */
  async disallow(name: string, client: string): Promise<void> {
    await this.#host.serial.run([`disk ${name}`], async () => {
      this.#checkWhole(name);
      await this.#host.rules.disallow(name, client);
    });
  }

  #checkWhole(name: string): void {
    this.#entries.get(name);
    if (name === wholeDisk(name)) return;
    throw new BlksnapError('EINVAL', `Partition "${name}" has no clients of its own: allow disk "${wholeDisk(name)}"`);
  }

  // --- filters --------------------------------------------------------------------------------

  async filters(): Promise<FilterView[]> {
    return await this.#host.io.call('filters', {});
  }

  /** Puts a filter on a disk or partition; it is attached again at every start.
   *  Errors: ENOENT for an unknown disk or kind; EALREADY. */
  async attachFilter(name: string, filter: AttachedFilter): Promise<DiskView> {
    return await this.#host.serial.run([`disk ${wholeDisk(name)}`], async () => {
      const entry = this.#entries.get(name);
      const info = await this.#host.io.call('filterAttach', { disk: name, ...filter });
      try {
        this.#entries.keepFilters(entry, [...keptFilters(entry), asKept(name, filter)]);
      } catch (cause) {
        await this.#host.io.call('filterDetach', { disk: name, name: filter.name });
        throw cause;
      }
      this.#host.log.info({ disk: name, filter: filter.name }, 'filter attached');
      return this.#view(name, entry, info);
    });
  }

  /** Of what is not served it is only forgotten: the way out when its module is gone. Errors: ENOENT; EBUSY. */
  async detachFilter(name: string, filter: string): Promise<void> {
    await this.#host.serial.run([`disk ${wholeDisk(name)}`], async () => {
      const entry = this.#entries.get(name);
      const isIt = isKeptOf(name, filter);
      const kept = keptFilters(entry);
      const served = failureOf(entry) === null && (!kept.some(isIt) || (await this.#isServed(name)));
      if (served) await this.#host.io.call('filterDetach', { disk: name, name: filter });
      this.#entries.keepFilters(
        entry,
        kept.filter((one) => !isIt(one)),
      );
      this.#host.log.info({ disk: name, filter }, 'filter detached');
    });
  }

  /** Errors: ENOENT; what the filter fails with. */
  async filterCtl(
    name: string,
    filter: string,
    ctl: { readonly command: string; readonly payload: unknown },
  ): Promise<unknown> {
    this.#entries.get(name);
    return await this.#host.io.call('filterCtl', { disk: name, name: filter, ...ctl });
  }

  // --- change tracking ------------------------------------------------------------------------

  /** Bytes of the change map: one per tracking block. Errors: ENOENT; ENODEV for a failed disk; EINVAL. */
  async cbtMap(name: string, range: ByteRange): Promise<Uint8Array> {
    this.#entries.get(name);
    return await this.#host.io.call('cbtMap', { name, ...range });
  }

  async markDirty(name: string, ranges: readonly ByteRange[]): Promise<void> {
    this.#entries.get(name);
    await this.#host.io.call('cbtMarkDirty', { name, ranges });
  }

  // --- volumes in use -------------------------------------------------------------------------

  /** Brings a volume that was attached in use to where that was to end. `restore` must not be called for it. */
  async recover(state: LiveDiskState): Promise<void> {
    if (!this.#live.isUndone(state)) return await this.restore(state);
    const entry: Entry = { kind: 'disk', state, failure: null };
    this.#entries.set(state.name, entry);
    try {
      await this.#live.detach(state, { force: true });
      await this.#forget(state.name, entry);
    } catch (cause) {
      entry.failure = toBlksnapError(cause);
      this.#host.log.error({ disk: state.name, error: entry.failure.message }, 'cannot get its own table back');
    }
  }

  /** The daemon ends: volumes in use get their own tables back, until the next one attaches them again. */
  async release(): Promise<GivenBack[]> {
    const turns = [...this.liveNames].map((name) => `disk ${name}`);
    return await this.#host.serial.run(turns, () => this.#live.release());
  }

  /** Errors: EINVAL for a place whose writes would have to pass through us. */
  checkPlace(place: string): void {
    this.#live.refusePlace(place);
  }

  /** Finds the disks whose volumes somebody else has given another table. */
  async findStrayed(): Promise<void> {
    for (const name of this.#live.strayed()) {
      await this.#host.serial.run([`disk ${name}`], () => this.strayedOf(new Set([name])));
    }
  }

  /** Why writes may have passed one of the disks by; null where none has strayed. Its images and history are lost. The
   *  caller is in the turn of the disks. */
  async strayedOf(disks: ReadonlySet<string>): Promise<BlksnapError | null> {
    for (const name of this.#live.strayed().filter((one) => disks.has(one))) {
      const entry = this.#entries.find(name);
      if (entry?.kind !== 'disk' || (await this.#live.leadsToUs(name))) continue;
      if (entry.failure !== null) return entry.failure;
      const reason = `another program gave volume "${entry.state.live?.volume}" another table, and writes passed by`;
      await this.#host.io.call('doubt', { name, reason });
      entry.failure = new BlksnapError('ESTALE', `${reason}; detach disk "${name}", or attach the volume again`);
      this.#host.log.error({ disk: name }, entry.failure.message);
    }
    return null;
  }

  async #attachVolume(volume: MapperDevice, fresh: DiskState, request: AttachRequest): Promise<DiskView> {
    const { name } = fresh;
    const before = this.#entries.find(name);
    const known = before?.kind === 'disk' && before.state.live !== null;
    // One that failed goes on from where it is.
    const state = known ? before.state : fresh;
    if (!known) await this.#live.check(volume, { force: request.force ?? false });
    const entry: Entry = { kind: 'disk', state, failure: null };
    this.#entries.set(name, entry);
    try {
      const info = await this.#live.attach(state as LiveDiskState, request.via);
      this.#host.log.info({ disk: name, path: state.path }, 'attached while in use');
      return this.#view(name, entry, info);
    } catch (cause) {
      if (!known && this.#live.isGone(name)) await this.#forget(name, entry);
      else entry.failure = toBlksnapError(cause);
      throw cause;
    }
  }

  // --- inside ---------------------------------------------------------------------------------

  async #isServed(name: string): Promise<boolean> {
    return (await this.#host.io.call('disks', {})).some((info) => info.name === name);
  }

  #open(state: DiskState): Promise<DiskInfo> {
    return this.#host.io.call('attach', { ...state, cbtPath: this.#cbtPath(state.name) });
  }

  #cbtPath(name: string): string {
    return path.join(this.#host.paths.cbt, `${name}.map`);
  }

  #view(name: string, entry: Entry, info: DiskInfo | undefined): DiskView {
    const kernelDevice = this.#devices.view(wholeDisk(name));
    return diskView(name, entry, { info, uri: this.#host.uri(name), kernelDevice });
  }
}
