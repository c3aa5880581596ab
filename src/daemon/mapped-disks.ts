/** The mapped devices of an I/O thread, and the redirected ranges of its disks. Every operation is a slow path; the
 *  control thread sees to it that those on one device follow one another.
 *
 *  **A tracker never believes an old history of new data.** When a table is swapped, or a range redirected, and nobody
 *  vouches that the data is the same, the generation is renewed; while a snapshot is held, it is refused. */

import type { BioPool } from '../block/bio.ts';
import type { Disk } from '../block/disk.ts';
import { REMAP_NAME, RemapFilter } from '../block/remap-filter.ts';
import type { Tracker } from '../blksnap/tracker.ts';
import { MappedDevice } from '../dm/mapped-device.ts';
import { openMapping, planMapping } from '../dm/mapping.ts';
import type { MappingPlan } from '../dm/mapping.ts';
import { parseTable, splitWords } from '../dm/table.ts';
import type { Reactor } from '../io/reactor.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { Backings, overlap } from './backings.ts';
import type { BackingHost, Claim } from './backings.ts';
import type { IoCalls, MappedInfo, RemapInfo, RestoredMapping } from './io-protocol.ts';
import { loadMappedState, saveMappedState } from './mapped-state.ts';
import type { KeptFilter } from './state.ts';

export interface MappedHost extends BackingHost {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  tracker(name: string): Tracker;
  /** Ids of the snapshots of a disk that are held. */
  heldOf(name: string): readonly string[];
  /** Those of them that outlive the process. */
  persistentOf(name: string): readonly string[];
  /** Serves a device as a disk. */
  serve(name: string, device: MappedDevice, filters: readonly KeptFilter[]): Promise<void>;
  /** Ends serving a disk that should not be. */
  withdraw(name: string): Promise<void>;
  /** Claims have changed: clients must not write what is claimed. */
  protect(): Promise<void>;
}

interface Mapped {
  readonly name: string;
  readonly device: MappedDevice;
  live: readonly Claim[];
  inactive: { readonly claims: readonly Claim[]; readonly sameData: boolean } | null;
}

export class MappedDisks {
  readonly #host: MappedHost;
  readonly #backings: Backings;
  readonly #devices = new Map<string, Mapped>();
  #remaps: RemapInfo[] = [];
  /** Tables of devices that could not be made at the start: not to be forgotten. */
  readonly #failed = new Map<string, string>();
  /** Redirected ranges whose device could not be made: their disk must not be served. */
  #lost: RemapInfo[] = [];
  #stateFile = '';

  constructor(host: MappedHost) {
    this.#host = host;
    this.#backings = new Backings(host.reactor, host);
  }

  // --- what there is --------------------------------------------------------------------------

  list(): { devices: MappedInfo[]; remaps: RemapInfo[] } {
    const devices = [...this.#devices.values()].map(({ name, device }) => ({
      name,
      size: device.size,
      suspended: device.suspended,
      inFlight: device.inFlight,
      table: device.table(),
      inactiveTable: device.table('inactive'),
      status: device.status(),
    }));
    return { devices, remaps: [...this.#remaps] };
  }

  /** Who uses a part of the range, or of the whole disk. */
  users(claim: Claim): string[] {
    const names = [...this.#devices.values()]
      .filter(({ live, inactive }) => [...live, ...(inactive?.claims ?? [])].some((one) => overlap(one, claim)))
      .map(({ name }) => `mapped device "${name}"`);
    const remaps = this.#remaps.filter(({ to, at, length }) =>
      overlap({ root: `disk ${to}`, offset: at, length }, claim),
    );
    return [...names, ...remaps.map(({ disk }) => `redirected ranges of disk "${disk}"`)];
  }

  /** Errors: EBUSY when the disk cannot be closed now. */
  checkClose(name: string): void {
    const suspended = this.#devices.get(name)?.device.suspended ?? false;
    const redirected = this.#remaps.some(({ disk }) => disk === name);
    const users = this.users({ root: `disk ${name}`, offset: 0, length: Infinity });
    const why = suspended
      ? 'it is suspended; resume it first'
      : redirected
        ? 'ranges of it are redirected; take them back first (`blksnap dm unmap`)'
        : users.length > 0
          ? `it is used by ${users.join(', ')}`
          : '';
    if (why !== '') throw new BlksnapError('EBUSY', `Cannot detach disk "${name}": ${why}`);
  }

  #get(name: string): Mapped {
    const mapped = this.#devices.get(name);
    if (mapped !== undefined) return mapped;
    const known = [...this.#devices.keys()].join(', ') || 'none';
    throw new BlksnapError('ENOENT', `No mapped device "${name}": there are ${known}`);
  }

  // --- tables ---------------------------------------------------------------------------------

  async create({ name, table, filters }: IoCalls['dmCreate']['args']): Promise<void> {
    const { plan, claims } = this.#plan(name, table);
    const mapping = await openMapping(plan, (backing) => this.#backings.lend(backing));
    const device = new MappedDevice(name, mapping, this.#host.pool);
    this.#devices.set(name, { name, device, live: claims, inactive: null });
    try {
      await this.#host.serve(name, device, filters);
    } catch (cause) {
      this.#devices.delete(name);
      throw cause;
    }
    this.#failed.delete(name);
    this.#save();
    await this.#host.protect();
  }

  /** Reads a table, and checks what it claims. Errors: EINVAL; ENOENT; EBUSY for what is used; EINVAL for a loop. */
  #plan(name: string, text: string): { plan: MappingPlan; claims: Claim[] } {
    const plan = planMapping(parseTable(text), this.#host);
    try {
      const claims: Claim[] = [];
      for (const target of plan.targets) {
        const own = target.ports.map((port) => ({
          port,
          claim: this.#backings.claim(port.name, port.offset, port.length),
        }));
        for (const { port, claim } of own) {
          this.#refuseLoop(name, claim, port.name);
          const users = this.users(claim).filter((user) => user !== `mapped device "${name}"`);
          if (claims.some((other) => overlap(other, claim))) users.push('another line of the table');
          // Reads and writes of one target may go to one place.
          if (
            own.some((other) => other.claim !== claim && overlap(other.claim, claim) && !samePlace(other.claim, claim))
          )
            users.push('the same line');
          if (users.length > 0) {
            throw new BlksnapError(
              'EBUSY',
              `Cannot map to sectors ${port.offset / 512} to ${(port.offset + port.length) / 512 - 1} of "${port.name}": used by ${users.join(', ')}`,
            );
          }
        }
        claims.push(...own.map(({ claim }) => claim));
      }
      return { plan, claims };
    } catch (cause) {
      for (const target of plan.targets) target.close();
      throw cause;
    }
  }

  #refuseLoop(name: string, { root }: Claim, shown: string): void {
    if (this.#reaches(root, `disk ${name}`)) {
      throw new BlksnapError('EINVAL', `Cannot map "${name}" to "${shown}": that lies on "${name}" itself`);
    }
  }

  /** Whether bios to one device may come to the other. */
  #reaches(from: string, to: string): boolean {
    return from === to || this.#below(from).some((next) => this.#reaches(next, to));
  }

  #below(root: string): string[] {
    const mapped = root.startsWith('disk ') ? this.#devices.get(root.slice('disk '.length)) : undefined;
    const roots = [...(mapped?.live ?? []), ...(mapped?.inactive?.claims ?? [])].map((claim) => claim.root);
    const redirected = this.#remaps.filter(({ disk }) => root === `disk ${disk}`).map(({ to }) => `disk ${to}`);
    return [...roots, ...redirected];
  }

  /** Paths of the files and devices that a disk's data lies on by tables and redirections. */
  pathsUnder(name: string): string[] {
    return this.#below(`disk ${name}`).flatMap((root) => {
      if (root.startsWith('path ')) return [root.slice('path '.length)];
      const below = root.slice('disk '.length);
      return [this.#host.tracker(below).originPath ?? [], this.pathsUnder(below)].flat();
    });
  }

  async load({ name, table, sameData }: IoCalls['dmLoad']['args']): Promise<void> {
    const mapped = this.#get(name);
    const { plan, claims } = this.#plan(name, table);
    await mapped.device.load(await openMapping(plan, (backing) => this.#backings.lend(backing)));
    mapped.inactive = { claims, sameData };
    await this.#host.protect();
  }

  async suspend(name: string): Promise<void> {
    await this.#get(name).device.suspend();
  }

  /** Errors: EBUSY when a snapshot is held and the table to come has other data. */
  async resume(name: string): Promise<void> {
    const mapped = this.#get(name);
    const next = mapped.inactive;
    if (next !== null && !next.sameData) this.#refuseHeld(name, 'swap the table of');
    await mapped.device.resume(() => {
      this.#save();
      if (!next!.sameData) this.#host.tracker(name).cbt.renew('the table of the mapped device was replaced');
      mapped.live = next!.claims;
      mapped.inactive = null;
    });
    if (next !== null) await this.#host.protect();
  }

  #refuseHeld(name: string, action: string): void {
    const held = this.#host.heldOf(name);
    if (held.length === 0) return;
    throw new BlksnapError(
      'EBUSY',
      `Cannot ${action} "${name}": snapshot ${held.join(', ')} is held, and its image reads from there; ` +
        'destroy it first, or say that the data is the same',
    );
  }

  /** What is redirected nobody watches while the daemon is away. */
  #refusePersistent(name: string): void {
    const held = this.#host.persistentOf(name);
    if (held.length === 0) return;
    throw new BlksnapError(
      'EBUSY',
      `Cannot redirect a range of "${name}": persistent snapshot ${held.join(', ')} of it is held; destroy it first`,
    );
  }

  message(name: string, sector: number, text: string): string {
    return this.#get(name).device.message(sector, splitWords(text));
  }

  /** A device was closed with its disk. */
  async forget(name: string): Promise<void> {
    this.#devices.delete(name);
    this.#save();
    await this.#host.protect();
  }

  /** A device that could not be made is not wanted any more. */
  forgetFailed(name: string): void {
    if (this.#failed.delete(name)) this.#save();
  }

  // --- redirected ranges ----------------------------------------------------------------------

  async remap(request: IoCalls['dmRemap']['args']): Promise<void> {
    const { disk: name, offset, length, to, at, copy } = request;
    const target = this.#get(to);
    const { disk } = this.#host.find(name);
    if (disk.name.includes('/'))
      throw new BlksnapError('EINVAL', `Cannot redirect ranges of partition "${name}": redirect those of its disk`);
    if (!copy) this.#refuseHeld(name, 'redirect a range of');
    this.#refusePersistent(name);
    this.#refuseLoop(name, { root: `disk ${to}`, offset: at, length }, to);
    const users = this.users({ root: `disk ${to}`, offset: at, length });
    if (users.length > 0)
      throw new BlksnapError(
        'EBUSY',
        `Cannot redirect to ${length} bytes at ${at} of "${to}": used by ${users.join(', ')}`,
      );
    const known = disk.filter(REMAP_NAME) as RemapFilter | undefined;
    const filter = known ?? new RemapFilter(this.#host);
    if (known === undefined) await disk.attachFilter(filter);
    const entry: RemapInfo = { disk: name, offset, length, to, at };
    // From here on nobody else may write there: also not while it is copied.
    this.#remaps = [...this.#remaps, entry];
    try {
      await this.#host.protect();
      const switched = (): void => {
        this.#save();
        if (!copy) this.#host.tracker(name).cbt.renew('a range of the disk was redirected');
      };
      await filter.redirect({ offset, length, device: this.#host.find(target.name).disk, at }, { copy, switched });
    } catch (cause) {
      this.#remaps = this.#remaps.filter((other) => other !== entry);
      await this.#tidy(disk, filter);
      throw cause;
    }
  }

  async unmap({ disk: name, offset, copy }: IoCalls['dmUnmap']['args']): Promise<void> {
    if (this.#giveUp(name, offset, copy)) return;
    const { disk } = this.#host.find(name);
    const entry = this.#remaps.find((remap) => remap.disk === name && remap.offset === offset);
    if (entry === undefined)
      throw new BlksnapError('ENOENT', `No redirected range of disk "${name}" begins at ${offset}`);
    if (!copy) this.#refuseHeld(name, 'take back a range of');
    const filter = disk.filter(REMAP_NAME) as RemapFilter;
    await filter.restore(offset, {
      copy,
      switched: () => {
        this.#save(entry);
        this.#remaps = this.#remaps.filter((other) => other !== entry);
        if (!copy) this.#host.tracker(name).cbt.renew('a redirected range of the disk was taken back');
      },
    });
    await this.#tidy(disk, filter);
  }

  /** Gives up a redirected range whose device could not be made, and with it the data there. */
  #giveUp(name: string, offset: number, copy: boolean): boolean {
    const lost = this.#lost.find((remap) => remap.disk === name && remap.offset === offset);
    if (lost === undefined) return false;
    if (copy)
      throw new BlksnapError(
        'ENODEV',
        `Cannot copy the range back: mapped device "${lost.to}" could not be made; without copying, what it holds is given up`,
      );
    this.#lost = this.#lost.filter((other) => other !== lost);
    this.#save();
    return true;
  }

  /** Errors: EBUSY for a disk that must not be served without its redirected ranges. */
  checkAttach(name: string): void {
    const lost = this.#lost.find(({ disk }) => disk === name);
    if (lost === undefined) return;
    throw new BlksnapError(
      'EBUSY',
      `Cannot serve disk "${name}": its range at ${lost.offset} lies on mapped device "${lost.to}", which could not be made; ` +
        `make that possible and start the daemon anew, or give the range up: \`blksnap dm unmap ${name} ${lost.offset} --no-copy\``,
    );
  }

  async #tidy(disk: Disk, filter: RemapFilter): Promise<void> {
    if (filter.redirects.length === 0) await disk.detachFilter(filter);
    await this.#host.protect();
  }

  // --- life -----------------------------------------------------------------------------------

  #save(except?: RemapInfo): void {
    if (this.#stateFile === '') return;
    const devices = [...this.#devices.values()].map(({ name, device }) => ({ name, table: device.table().join('\n') }));
    const failed = [...this.#failed].map(([name, table]) => ({ name, table }));
    const remaps = [...this.#remaps, ...this.#lost].filter((remap) => remap !== except);
    saveMappedState(this.#stateFile, { version: 1, devices: [...devices, ...failed], remaps });
  }

  /** Makes what is remembered, in whatever order works, and remembers changes from then on. Errors: EBADMSG. */
  async restore({ stateFile, filters: kept }: IoCalls['dmRestore']['args']): Promise<RestoredMapping[]> {
    const { devices, remaps } = loadMappedState(stateFile);
    const results: RestoredMapping[] = [];
    for (const { name, table } of devices) this.#failed.set(name, table);
    let waiting = devices;
    for (let progress = true; progress && waiting.length > 0;) {
      const failures = new Map<string, BlksnapError>();
      for (const { name, table } of waiting) {
        const filters = kept.get(name) ?? [];
        await this.create({ name, table, filters }).catch((cause: unknown) =>
          failures.set(name, toBlksnapError(cause)),
        );
      }
      progress = failures.size < waiting.length;
      for (const { name } of waiting) if (!failures.has(name)) results.push({ kind: 'device', name, error: null });
      waiting = waiting.filter(({ name }) => failures.has(name));
      if (!progress)
        for (const [name, { code, message }] of failures)
          results.push({ kind: 'device', name, error: { code, message } });
    }
    for (const remap of remaps) {
      try {
        await this.remap({ ...remap, copy: false });
      } catch (cause) {
        // Without its redirect the disk would show old data.
        const { code, message } = toBlksnapError(cause);
        this.#lost.push(remap);
        results.push({ kind: 'remap', name: remap.disk, error: { code, message } });
      }
    }
    for (const { disk } of this.#lost) await this.#host.withdraw(disk);
    this.#stateFile = stateFile;
    return results;
  }

  /** The thread ends: bios that are held will never go. */
  abandon(): void {
    this.#stateFile = '';
    for (const { device } of this.#devices.values()) device.abandon();
    for (const { disk } of this.#remaps) {
      try {
        (this.#host.find(disk).disk.filter(REMAP_NAME) as RemapFilter | undefined)?.release();
      } catch {
        // The disk was not attached.
      }
    }
  }
}

function samePlace(one: Claim, other: Claim): boolean {
  return one.offset === other.offset && one.length === other.length;
}
