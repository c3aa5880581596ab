/** The disks of a daemon: which are served, which should be and are not, what is remembered of them. Operations on
 *  one disk follow one another; operations on others run beside them. */

import fs from 'node:fs';
import path from 'node:path';
import type { ByteRange } from '../backup/ranges.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { checkName, defaultName, realPath, wholeDisk } from './disk-names.ts';
import type { Host } from './host.ts';
import type { KernelDevices } from './kernel-devices.ts';
import type { AttachedFilter, DiskInfo } from './io-protocol.ts';
import type { AttachRequest, MountRequest } from './requests.ts';
import { saveState } from './state.ts';
import type { DiskState } from './state.ts';
import type { DiskView, FilterView, KernelDeviceView } from './views.ts';

/** A disk that is to be served, and why it is not, where it is not. */
type Entry =
  | { readonly kind: 'disk'; state: DiskState; failure: BlksnapError | null }
  | { readonly kind: 'mount'; readonly directory: string; readonly point: string }
  /** Remembered by the I/O thread. */
  | { readonly kind: 'mapped'; readonly failure: BlksnapError | null };

export class Disks {
  readonly #host: Host;
  readonly #devices: KernelDevices;
  readonly #entries = new Map<string, Entry>();

  constructor(host: Host, devices: KernelDevices) {
    this.#host = host;
    this.#devices = devices;
  }

  get size(): number {
    return this.#entries.size;
  }

  /** How many should be served and are not. */
  get failed(): number {
    return [...this.#entries.values()].filter((entry) => failureOf(entry) !== null).length;
  }

  /** Attaches a disk that is remembered. Where that fails, `list` tells why. */
  async restore(state: DiskState): Promise<void> {
    const entry: Entry = { kind: 'disk', state, failure: null };
    this.#entries.set(state.name, entry);
    try {
      const { cbt } = await this.#open(state);
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
  adopt(name: string, failure: BlksnapError | null): void {
    this.#entries.set(name, { kind: 'mapped', failure });
  }

  /** A disk that was attached is not served after all. */
  fail(name: string, failure: BlksnapError): void {
    const entry = this.#entries.get(name);
    if (entry?.kind === 'disk') entry.failure = failure;
  }

  /** Errors: EEXIST when the name is taken. */
  checkNew(name: string): void {
    const entry = this.#entries.get(name);
    if (entry?.kind === 'mapped' && entry.failure !== null) return;
    this.#checkFree(name, null);
  }

  /** Errors: ENOENT when there is no disk of that name. */
  check(name: string): void {
    this.#entry(name);
  }

  /** Every disk, by name. */
  async list(): Promise<DiskView[]> {
    const infos = new Map((await this.#host.io.call('disks', {})).map((info) => [info.name, info]));
    const names = new Set([...this.#entries.keys(), ...infos.keys()]);
    // One that is just being attached or detached is nobody's.
    const known = [...names].filter((name) => this.#entries.has(wholeDisk(name)));
    const views = known.map((name) => this.#view(name, this.#entry(name), infos.get(name)));
    return views.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** Errors: ENOENT. */
  async get(name: string): Promise<DiskView> {
    this.#entry(name);
    const view = (await this.list()).find((candidate) => candidate.name === name);
    if (view === undefined) throw this.#noDisk(name);
    return view;
  }

  /** Serves a file or device under a name. Errors: ENOENT, EISDIR, …: what the path fails with; EALREADY
   *  when it is served; EEXIST when the name is taken; EBUSY when somebody else uses it. */
  async attach(request: AttachRequest): Promise<DiskView> {
    const real = realPath(request.path);
    const name = request.name ?? defaultName(real);
    checkName(name, 'give one with --name');
    const state = {
      name,
      path: real,
      readOnly: request.readOnly ?? false,
      direct: request.direct ?? false,
      filters: this.#rememberedFilters(name, real),
    };
    return await this.#host.serial.run([`disk ${name}`, `path ${real}`], async () => {
      this.#checkFree(name, real);
      const info = await this.#open(state);
      const entry: Entry = { kind: 'disk', state, failure: null };
      this.#entries.set(name, entry);
      try {
        this.#save();
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
      this.#checkFree(name, null);
      const { disk, point = null } = request;
      const overlayDirectory = this.#host.paths.state;
      const info = await this.#host.io.call('mount', { name, directory, disk, point, overlayDirectory });
      const entry: Entry = { kind: 'mount', directory, point: info.point };
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
      const entry = this.#entry(name);
      const held = await this.#devices.hold([name], { alsoOpeners: true, force });
      try {
        if (failureOf(entry) === null) await this.#host.io.call('detach', { name, force });
        else if (entry.kind === 'mapped') await this.#host.io.call('dmForget', { name });
      } catch (cause) {
        for (const { release } of held) await release();
        throw cause;
      }
      await this.#devices.removeHeld(held);
      await this.#forget(name, entry);
    });
  }

  async #forget(name: string, entry: Entry): Promise<void> {
    this.#entries.delete(name);
    if (entry.kind === 'disk') {
      this.#save();
      fs.rmSync(this.#cbtPath(name), { force: true });
    }
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
      await this.#forget(name, this.#entry(name));
      throw cause;
    }
  }

  /** Reads a disk's partition table anew: the disk and its partitions. Errors: ENOENT; EBUSY when a partition that
   *  is in use would have to go. */
  async rescan(name: string): Promise<DiskView[]> {
    return await this.#host.serial.run([`disk ${wholeDisk(name)}`], async () => {
      const entry = this.#entry(name);
      const infos = await this.#host.io.call('rescan', { name: wholeDisk(name) });
      for (const warning of infos[0]?.partitionTable?.warnings ?? []) this.#host.log.warn({ disk: name }, warning);
      return infos.map((info) => this.#view(info.name, entry, info));
    });
  }

  /** Takes over the size that a disk's file or device has now. Clients learn it when they connect again.
   *  Errors: ENOENT; EOPNOTSUPP where the size cannot change; EINVAL for one that a disk cannot have. */
  async resize(name: string): Promise<DiskView> {
    return await this.#host.serial.run([`disk ${wholeDisk(name)}`], async () => {
      const entry = this.#entry(name);
      const info = await this.#host.io.call('resize', { name });
      await this.#devices.resized(wholeDisk(name));
      this.#host.log.info({ disk: name, size: info.size }, 'resized');
      return this.#view(name, entry, info);
    });
  }

  /** As detach, of a mapped device alone. */
  async removeMapped(name: string): Promise<void> {
    if (this.#entry(name).kind !== 'mapped' || name !== wholeDisk(name)) {
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
    this.#entry(name);
    if (name === wholeDisk(name)) return;
    throw new BlksnapError('EINVAL', `Partition "${name}" has no clients of its own: allow disk "${wholeDisk(name)}"`);
  }

  // --- filters --------------------------------------------------------------------------------

  async filters(): Promise<FilterView[]> {
    return await this.#host.io.call('filters', {});
  }

  /** Puts a filter on a disk; it is attached again at every start. One on a partition is not.
   *  Errors: ENOENT for an unknown disk or kind; EALREADY. */
  async attachFilter(name: string, filter: AttachedFilter): Promise<DiskView> {
    return await this.#host.serial.run([`disk ${wholeDisk(name)}`], async () => {
      const entry = this.#entry(name);
      const info = await this.#host.io.call('filterAttach', { disk: name, ...filter });
      try {
        if (name === wholeDisk(name))
          this.#remember(entry, (filters) => [...filters, filter as DiskState['filters'][number]]);
      } catch (cause) {
        await this.#host.io.call('filterDetach', { disk: name, name: filter.name });
        throw cause;
      }
      this.#host.log.info({ disk: name, filter: filter.name }, 'filter attached');
      return this.#view(name, entry, info);
    });
  }

  /** Of a failed disk it is only forgotten: the way out when its module is gone. Errors: ENOENT; EBUSY. */
  async detachFilter(name: string, filter: string): Promise<void> {
    await this.#host.serial.run([`disk ${wholeDisk(name)}`], async () => {
      const entry = this.#entry(name);
      if (failureOf(entry) === null) await this.#host.io.call('filterDetach', { disk: name, name: filter });
      if (name === wholeDisk(name)) this.#remember(entry, (filters) => filters.filter((one) => one.name !== filter));
      this.#host.log.info({ disk: name, filter }, 'filter detached');
    });
  }

  /** Errors: ENOENT; what the filter fails with. */
  async filterCtl(
    name: string,
    filter: string,
    ctl: { readonly command: string; readonly payload: unknown },
  ): Promise<unknown> {
    this.#entry(name);
    return await this.#host.io.call('filterCtl', { disk: name, name: filter, ...ctl });
  }

  // --- change tracking ------------------------------------------------------------------------

  /** Bytes of the change map: one per tracking block. Errors: ENOENT; ENODEV for a failed disk; EINVAL. */
  async cbtMap(name: string, range: ByteRange): Promise<Uint8Array> {
    this.#entry(name);
    return await this.#host.io.call('cbtMap', { name, ...range });
  }

  async markDirty(name: string, ranges: readonly ByteRange[]): Promise<void> {
    this.#entry(name);
    await this.#host.io.call('cbtMarkDirty', { name, ranges });
  }

  // --- inside ---------------------------------------------------------------------------------

  /** Changes the filters that a disk comes back with. */
  #remember(entry: Entry, change: (filters: DiskState['filters']) => DiskState['filters']): void {
    if (entry.kind !== 'disk') return;
    const before = entry.state;
    entry.state = { ...before, filters: change(before.filters) };
    try {
      this.#save();
    } catch (cause) {
      entry.state = before;
      throw cause;
    }
  }

  /** Another try at a failed disk must not lose its filters. */
  #rememberedFilters(name: string, real: string): DiskState['filters'] {
    const entry = this.#entries.get(name);
    return entry?.kind === 'disk' && entry.state.path === real ? entry.state.filters : [];
  }

  #open(state: DiskState): Promise<DiskInfo> {
    return this.#host.io.call('attach', { ...state, cbtPath: this.#cbtPath(state.name) });
  }

  #cbtPath(name: string): string {
    return path.join(this.#host.paths.cbt, `${name}.map`);
  }

  #save(): void {
    const states = [...this.#entries.values()].flatMap((entry) => (entry.kind === 'disk' ? [entry.state] : []));
    saveState(this.#host.paths.stateFile, states);
  }

  /** A failed disk is free for another try at the same path. */
  #checkFree(name: string, real: string | null): void {
    for (const [other, entry] of this.#entries) {
      if (entry.kind !== 'disk' || entry.failure !== null || entry.state.path !== real) continue;
      throw new BlksnapError('EALREADY', `Cannot attach "${real}": it is attached already, as "${other}"`);
    }
    const entry = this.#entries.get(name);
    if (entry === undefined) return;
    if (entry.kind === 'disk' && entry.failure !== null && entry.state.path === real) return;
    const holder =
      entry.kind === 'disk' ? `"${entry.state.path}"` : entry.kind === 'mount' ? 'a mount' : 'a mapped device';
    throw new BlksnapError('EEXIST', `Cannot use name "${name}": ${holder} has it; give another with --name`);
  }

  #entry(name: string): Entry {
    const entry = this.#entries.get(wholeDisk(name));
    if (entry === undefined) throw this.#noDisk(name);
    return entry;
  }

  #noDisk(name: string): BlksnapError {
    const known = [...this.#entries.keys()].sort().join(', ');
    return new BlksnapError(
      'ENOENT',
      `No disk "${name}": ${known === '' ? 'none is attached; attach one with `blksnap attach PATH`' : `there are ${known}`}`,
    );
  }

  #view(name: string, entry: Entry, info: DiskInfo | undefined): DiskView {
    const failure = failureOf(entry);
    return {
      name,
      kind: name === wholeDisk(name) ? entry.kind : 'partition',
      path: pathOf(name, entry),
      point: entry.kind === 'mount' ? entry.point : null,
      state: failure === null ? 'attached' : 'failed',
      failure: failure === null ? null : { code: failure.code, message: failure.message },
      uri: this.#host.uri(name),
      size: info?.size ?? 0,
      logicalBlockSize: info?.logicalBlockSize ?? 0,
      physicalBlockSize: info?.physicalBlockSize ?? 0,
      readOnly: info?.readOnly ?? (entry.kind === 'disk' && entry.state.readOnly),
      direct: entry.kind === 'disk' && entry.state.direct,
      filters: [...(info?.filters ?? [])],
      inFlight: info?.inFlight ?? 0,
      cbt: info?.cbt ?? null,
      copies: info?.copies ?? null,
      partition: info?.partition ?? null,
      partitionTable: tableView(info),
      kernelDevice: this.#deviceView(name, info),
    };
  }

  #deviceView(name: string, info: DiskInfo | undefined): KernelDeviceView | null {
    const view = this.#devices.view(wholeDisk(name));
    const number = info?.partition?.number;
    return view === null || number === undefined
      ? view
      : { ...view, path: view.path === null ? null : `${view.path}p${number}` };
  }
}

function failureOf(entry: Entry): BlksnapError | null {
  return entry.kind === 'mount' ? null : entry.failure;
}

function pathOf(name: string, entry: Entry): string {
  switch (entry.kind) {
    case 'disk':
      return entry.state.path;
    case 'mount':
      return entry.directory;
    case 'mapped':
      return `dm:${wholeDisk(name)}`;
  }
}

function tableView(info: DiskInfo | undefined): DiskView['partitionTable'] {
  const { scheme = null, warnings = [] } = info?.partitionTable ?? {};
  return scheme === null ? null : { scheme, warnings: [...warnings] };
}
