/** The daemon, control side: which disks are served, what is remembered of them, and every
 *  operation on them that a person may ask for. The API hands its requests to this class.
 *
 *  What runs side by side: operations on one disk follow one another; the take of a snapshot counts
 *  as an operation on each of its disks; everything else is free. Does no block I/O itself. */

import fs from 'node:fs';
import path from 'node:path';
import type { ByteRange } from '../backup/ranges.ts';
import type { SnapshotEvent } from '../blksnap/events.ts';
import { totalOf } from '../blksnap/copy-counters.ts';
import { DEFAULT_PARAMETERS } from '../blksnap/parameters.ts';
import type { Parameters } from '../blksnap/parameters.ts';
import type { DriverName } from '../io/open.ts';
import type { SocketAddress } from '../io/reactor.ts';
import { isLocal } from '../nbd/address.ts';
import { formatNbdUri } from '../nbd/uri.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { VERSION } from '../util/version.ts';
import { checkName, defaultName, realPath } from './disk-names.ts';
import { EventLog } from './event-log.ts';
import type { Waiting } from './event-log.ts';
import { FREEZE_TIMEOUT_MS, takeFrozen } from './freeze-hooks.ts';
import type { FreezeReport } from './freeze-hooks.ts';
import type { AttachedFilter, DiskInfo, IoCalls, SnapshotInfo } from './io-protocol.ts';
import { IoThread } from './io-thread-client.ts';
import { lockDirectory } from './lock.ts';
import type { DirectoryLock } from './lock.ts';
import type { Log } from './log.ts';
import type { DaemonPaths } from './paths.ts';
import { PreparedSnapshots } from './prepared-snapshots.ts';
import type { AttachRequest, MountRequest, SnapshotRequest } from './requests.ts';
import { Serial } from './serial.ts';
import { loadState, saveState } from './state.ts';
import type { DiskState } from './state.ts';
import type { DiskView, EventView, FilterView, ImageView, PreparedView, SnapshotView, StatusView } from './views.ts';

export interface DaemonOptions {
  readonly paths: DaemonPaths;
  /** Null: the unix socket in the run directory. */
  readonly nbd: SocketAddress | null;
  /** Null: the best that works. */
  readonly driver: DriverName | null;
  readonly parameters?: Parameters | undefined;
  /** URLs of modules that register filters. */
  readonly filterModules?: readonly string[];
  readonly log: Log;
  /** Called when the daemon cannot go on. */
  readonly onFatal: (cause: BlksnapError) => void;
}

/** A disk that is to be served, and why it is not, where it is not. */
type Entry =
  | { readonly kind: 'disk'; state: DiskState; failure: BlksnapError | null }
  | { readonly kind: 'mount'; readonly directory: string; readonly point: string };

export class Daemon {
  readonly #options: DaemonOptions;
  readonly #lock: DirectoryLock;
  readonly #io: IoThread;
  readonly #events: EventLog;
  readonly #startedAt = new Date();
  /** Where NBD clients connect. */
  #nbdAddress: SocketAddress;
  readonly #entries = new Map<string, Entry>();
  readonly #prepared = new PreparedSnapshots();
  /** How the freeze hooks of held snapshots went. */
  readonly #freezes = new Map<string, FreezeReport>();
  readonly #serial = new Serial();
  #stopping: Promise<void> | null = null;

  /** Locks the directory, starts the I/O thread and attaches the disks that are remembered. One that
   *  cannot be attached is reported by `disks`, and keeps nothing else from starting.
   *  Errors: EBUSY when another daemon has the directory; EBADMSG for a broken state file. */
  static async start(options: DaemonOptions): Promise<Daemon> {
    const { paths, log } = options;
    for (const directory of [paths.run, paths.state, paths.cbt]) makePrivate(directory);
    const lock = lockDirectory(paths.lockFile);
    let daemon: Daemon | null = null;
    try {
      const remembered = loadState(paths.stateFile);
      const events = new EventLog();
      const io = await IoThread.start(
        { driver: options.driver, parameters: options.parameters ?? DEFAULT_PARAMETERS, filterModules: options.filterModules ?? [] },
        { event: (event) => hear(events, log, event), died: (cause) => options.onFatal(cause) },
      );
      daemon = new Daemon(options, lock, io, events);
      for (const state of remembered) await daemon.#restore(state);
      // Last, so that a client that comes back finds its disk.
      await daemon.#listen();
      return daemon;
    } catch (cause) {
      if (daemon === null) lock.release();
      else await daemon.stop();
      throw cause;
    }
  }

  private constructor(options: DaemonOptions, lock: DirectoryLock, io: IoThread, events: EventLog) {
    this.#options = options;
    this.#lock = lock;
    this.#io = io;
    this.#events = events;
    this.#nbdAddress = options.nbd ?? { kind: 'unix', path: options.paths.nbdSocket };
  }

  async #listen(): Promise<void> {
    const address = this.#nbdAddress;
    // Whoever made this socket is gone: we hold the lock.
    if (address.kind === 'unix') fs.rmSync(address.path, { force: true });
    this.#nbdAddress = await this.#io.call('listen', { address });
    if (!isLocal(address)) this.#options.log.warn('anyone who reaches the NBD address can read and write the disks');
  }

  /** Ends I/O in flight, closes the disks, gives the directory back. Snapshots end with the daemon. Safe to call twice. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async #stop(): Promise<void> {
    try {
      await this.#io.stop();
    } finally {
      this.#lock.release();
    }
  }

  async status(): Promise<StatusView> {
    const { paths } = this.#options;
    const entries = [...this.#entries.values()];
    const infos = await this.#io.call('disks', {});
    return {
      version: VERSION,
      pid: process.pid,
      startedAt: this.#startedAt.toISOString(),
      runDirectory: paths.run,
      stateDirectory: paths.state,
      driver: this.#io.ready.driver,
      driverReason: this.#io.ready.driverReason,
      nbdUri: this.#uri(''),
      parameters: this.#options.parameters ?? DEFAULT_PARAMETERS,
      copies: totalOf(infos.map(({ copies }) => copies)),
      disks: entries.length,
      failedDisks: entries.filter((entry) => entry.kind === 'disk' && entry.failure !== null).length,
      snapshots: this.#events.size - this.#prepared.size,
    };
  }

  // --- disks ----------------------------------------------------------------------------------

  /** Every disk, by name. */
  async disks(): Promise<DiskView[]> {
    const infos = new Map((await this.#io.call('disks', {})).map((info) => [info.name, info]));
    const views = [...this.#entries].map(([name, entry]) => this.#view(name, entry, infos.get(name)));
    return views.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** Errors: ENOENT. */
  async disk(name: string): Promise<DiskView> {
    this.#entry(name);
    const view = (await this.disks()).find((candidate) => candidate.name === name);
    if (view === undefined) throw this.#noDisk(name);
    return view;
  }

  /** Serves a file or device under a name. Errors: ENOENT, EISDIR, …: what the path fails with; EALREADY
   *  when it is served; EEXIST when the name is taken; EBUSY when somebody else uses it. */
  async attach(request: AttachRequest): Promise<DiskView> {
    const real = realPath(request.path);
    const name = request.name ?? defaultName(real);
    checkName(name, 'give one with --name');
    const state = { name, path: real, readOnly: request.readOnly ?? false, direct: request.direct ?? false, filters: this.#rememberedFilters(name, real) };
    return await this.#serial.run([`disk ${name}`, `path ${real}`], async () => {
      this.#checkFree(name, real);
      const info = await this.#open(state);
      const entry: Entry = { kind: 'disk', state, failure: null };
      this.#entries.set(name, entry);
      try {
        this.#save();
      } catch (cause) {
        this.#entries.delete(name);
        await this.#io.call('detach', { name });
        throw cause;
      }
      this.#options.log.info({ disk: name, path: real }, 'attached');
      return this.#view(name, entry, info);
    });
  }

  /** Serves a restore point as a writable disk. What is written to it goes when it is detached or the daemon ends. */
  async mount(request: MountRequest): Promise<DiskView> {
    const directory = realPath(request.directory);
    const name = request.name ?? `${request.disk}-mount`;
    checkName(name, 'give another');
    return await this.#serial.run([`disk ${name}`], async () => {
      this.#checkFree(name, null);
      const { disk, point = null } = request;
      const overlayDirectory = this.#options.paths.state;
      const info = await this.#io.call('mount', { name, directory, disk, point, overlayDirectory });
      const entry: Entry = { kind: 'mount', directory, point: info.point };
      this.#entries.set(name, entry);
      this.#options.log.info({ disk: name, directory, point: info.point }, 'mounted');
      return this.#view(name, entry, info);
    });
  }

  /** Ends serving a disk and forgets its change history. Errors: ENOENT; EBUSY while a snapshot of it is held. */
  async detach(name: string): Promise<void> {
    await this.#serial.run([`disk ${name}`], async () => {
      const entry = this.#entry(name);
      const served = entry.kind === 'mount' || entry.failure === null;
      if (served) await this.#io.call('detach', { name });
      this.#entries.delete(name);
      if (entry.kind === 'disk') {
        this.#save();
        fs.rmSync(this.#cbtPath(name), { force: true });
      }
      this.#options.log.info({ disk: name }, 'detached');
    });
  }

  // --- filters --------------------------------------------------------------------------------

  async filters(): Promise<FilterView[]> {
    return await this.#io.call('filters', {});
  }

  /** Puts a filter on a disk; it is attached again at every start. Errors: ENOENT for an unknown disk or kind; EALREADY. */
  async attachFilter(name: string, filter: AttachedFilter): Promise<DiskView> {
    return await this.#serial.run([`disk ${name}`], async () => {
      const entry = this.#entry(name);
      const info = await this.#io.call('filterAttach', { disk: name, ...filter });
      try {
        this.#remember(entry, (filters) => [...filters, filter as DiskState['filters'][number]]);
      } catch (cause) {
        await this.#io.call('filterDetach', { disk: name, name: filter.name });
        throw cause;
      }
      this.#options.log.info({ disk: name, filter: filter.name }, 'filter attached');
      return this.#view(name, entry, info);
    });
  }

  /** Of a failed disk it is only forgotten: the way out when its module is gone. Errors: ENOENT; EBUSY. */
  async detachFilter(name: string, filter: string): Promise<void> {
    await this.#serial.run([`disk ${name}`], async () => {
      const entry = this.#entry(name);
      const served = entry.kind === 'mount' || entry.failure === null;
      if (served) await this.#io.call('filterDetach', { disk: name, name: filter });
      this.#remember(entry, (filters) => filters.filter((one) => one.name !== filter));
      this.#options.log.info({ disk: name, filter }, 'filter detached');
    });
  }

  /** Errors: ENOENT; what the filter fails with. */
  async filterCtl(name: string, filter: string, ctl: { readonly command: string; readonly payload: unknown }): Promise<unknown> {
    this.#entry(name);
    return await this.#io.call('filterCtl', { disk: name, name: filter, ...ctl });
  }

  // --- change tracking ------------------------------------------------------------------------

  /** Bytes of the change map: one per tracking block. Errors: ENOENT; ENODEV for a failed disk; EINVAL. */
  async cbtMap(name: string, range: ByteRange): Promise<Uint8Array> {
    this.#entry(name);
    return await this.#io.call('cbtMap', { name, ...range });
  }

  async markDirty(name: string, ranges: readonly ByteRange[]): Promise<void> {
    this.#entry(name);
    await this.#io.call('cbtMarkDirty', { name, ranges });
  }

  // --- snapshots ------------------------------------------------------------------------------

  /** Freezes all the disks at one instant. Errors: EINVAL for no disk or the same twice; ENOENT; what the storage fails with. */
  async createSnapshot(request: SnapshotRequest, id?: string): Promise<SnapshotView> {
    const { disks } = request;
    if (disks.length === 0) throw new BlksnapError('EINVAL', 'Cannot take a snapshot of no disk: name at least one');
    const twice = disks.find((name, index) => disks.indexOf(name) !== index);
    if (twice !== undefined)
      throw new BlksnapError('EINVAL', `Cannot take a snapshot of disk "${twice}" twice: name it once`);
    for (const name of disks) this.#entry(name);
    const storagePath = request.storage ?? this.#options.paths.state;
    return await this.#serial.run(
      disks.map((name) => `disk ${name}`),
      async () => {
        const limitBytes = request.limitBytes ?? null;
        const info = await this.#take(request, { id, disks, storagePath, limitBytes });
        this.#events.open(info.id);
        this.#options.log.info({ snapshot: info.id, disks, heldMs: info.heldMs }, 'snapshot taken');
        return this.#snapshotView(info);
      },
    );
  }

  /** The take, between its hooks where it has some. */
  async #take({ hooks }: SnapshotRequest, args: IoCalls['createSnapshot']['args']): Promise<SnapshotInfo> {
    const take = (): Promise<SnapshotInfo> => this.#io.call('createSnapshot', args);
    if (hooks === undefined) return await take();
    const { taken, report } = await takeFrozen(
      { ...hooks, timeoutMs: hooks.timeoutMs ?? FREEZE_TIMEOUT_MS },
      args.disks,
      {
        take,
        undo: ({ id }) => this.#io.call('destroySnapshot', { id }),
      },
    );
    this.#freezes.set(taken.id, report);
    if (report.thawError !== null)
      this.#options.log.error({ snapshot: taken.id, error: report.thawError }, 'not thawed');
    return taken;
  }

  /** Every held snapshot, oldest first. */
  async snapshots(): Promise<SnapshotView[]> {
    const infos = await this.#io.call('snapshots', {});
    return infos.map((info) => this.#snapshotView(info)).sort((a, b) => (a.createdAt < b.createdAt ? -1 : 1));
  }

  /** Errors: ESRCH. */
  async snapshot(id: string): Promise<SnapshotView> {
    const view = (await this.snapshots()).find((candidate) => candidate.id === id);
    if (view === undefined) throw noSnapshot(id);
    return view;
  }

  async destroySnapshot(id: string): Promise<void> {
    const { images } = await this.snapshot(id);
    await this.#serial.run(
      images.map(({ disk }) => `disk ${disk}`),
      async () => {
        await this.#io.call('destroySnapshot', { id });
        this.#events.close(id);
        this.#freezes.delete(id);
        this.#options.log.info({ snapshot: id }, 'snapshot destroyed');
      },
    );
  }

  /** Gives a held snapshot more room: another place (with a limit of its own), or a higher limit in all.
   *  Errors: ESRCH; EINVAL; what the place fails with. */
  async appendStorage(
    id: string,
    request: { readonly storage?: string | undefined; readonly limitBytes?: number | undefined },
  ): Promise<SnapshotView> {
    const { storage, limitBytes } = request;
    if (storage === undefined && limitBytes === undefined) {
      throw new BlksnapError(
        'EINVAL',
        `Cannot give snapshot ${id} more room: name another place, a higher limit, or both`,
      );
    }
    const info = await this.#io.call('appendStorage', {
      id,
      storagePath: storage ?? null,
      limitBytes: limitBytes ?? null,
    });
    this.#options.log.info({ snapshot: id, storage, limitBytes: info.limitBytes }, 'storage appended');
    return this.#snapshotView(info);
  }

  /** Gives out the id of a snapshot that `takeSnapshot` will take. Errors: EINVAL for a disk twice; ENOENT. */
  prepareSnapshot(request: SnapshotRequest): PreparedView {
    for (const name of request.disks) this.#entry(name);
    const { disks, storage, limitBytes } = request;
    const storagePath = storage ?? this.#options.paths.state;
    const prepared = this.#prepared.create({ disks, storagePath, limitBytes: limitBytes ?? null });
    this.#events.open(prepared.id);
    return prepared;
  }

  preparedSnapshots(): PreparedView[] {
    return this.#prepared.list();
  }

  /** Errors: ENOENT, ESRCH; EALREADY when the disk is in it. */
  addToSnapshot(id: string, disk: string): PreparedView {
    this.#entry(disk);
    return this.#prepared.add(id, disk);
  }

  /** Takes a prepared snapshot. Errors: ESRCH, and as `createSnapshot`: it is then prepared as before. */
  async takeSnapshot(id: string): Promise<SnapshotView> {
    const prepared = this.#prepared.remove(id);
    const { disks, storagePath: storage, limitBytes } = prepared;
    try {
      return await this.createSnapshot({ disks, storage, limitBytes: limitBytes ?? undefined }, id);
    } catch (cause) {
      this.#prepared.restore(prepared);
      throw cause;
    }
  }

  /** Errors: ESRCH when there is no such prepared snapshot. */
  forgetSnapshot(id: string): void {
    this.#prepared.remove(id);
    this.#events.close(id);
  }

  /** As EventLog.next. */
  async nextEvent(id: string, waiting: Omit<Waiting, 'after'>): Promise<EventView | null> {
    return await this.#events.next(id, waiting);
  }

  /** As EventLog.wait. */
  async waitEvents(id: string, waiting: Waiting): Promise<EventView[]> {
    return await this.#events.wait(id, waiting);
  }

  // --- inside ---------------------------------------------------------------------------------

  async #restore(state: DiskState): Promise<void> {
    const entry: Entry = { kind: 'disk', state, failure: null };
    this.#entries.set(state.name, entry);
    try {
      const { cbt } = await this.#open(state);
      this.#options.log.info(
        { disk: state.name, path: state.path, history: cbt.reason || 'goes on' },
        'attached again',
      );
    } catch (cause) {
      entry.failure = toBlksnapError(cause);
      this.#options.log.error(
        { disk: state.name, path: state.path, error: entry.failure.message },
        'cannot be attached again',
      );
    }
  }

  /** Changes the filters that a disk comes back with. */
  #remember(entry: Entry, change: (filters: DiskState['filters']) => DiskState['filters']): void {
    if (entry.kind === 'mount') return;
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
    return this.#io.call('attach', { ...state, cbtPath: this.#cbtPath(state.name) });
  }

  #cbtPath(name: string): string {
    return path.join(this.#options.paths.cbt, `${name}.map`);
  }

  #save(): void {
    const states = [...this.#entries.values()].flatMap((entry) => (entry.kind === 'disk' ? [entry.state] : []));
    saveState(this.#options.paths.stateFile, states);
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
    const holder = entry.kind === 'disk' ? `"${entry.state.path}"` : 'a mount';
    throw new BlksnapError('EEXIST', `Cannot use name "${name}": ${holder} has it; give another with --name`);
  }

  #entry(name: string): Entry {
    const entry = this.#entries.get(name);
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

  #uri(exportName: string): string {
    return formatNbdUri({ address: this.#nbdAddress, exportName });
  }

  #view(name: string, entry: Entry, info: DiskInfo | undefined): DiskView {
    const failure = entry.kind === 'disk' ? entry.failure : null;
    return {
      name,
      kind: entry.kind,
      path: entry.kind === 'disk' ? entry.state.path : entry.directory,
      point: entry.kind === 'mount' ? entry.point : null,
      state: failure === null ? 'attached' : 'failed',
      failure: failure === null ? null : { code: failure.code, message: failure.message },
      uri: this.#uri(name),
      size: info?.size ?? 0,
      logicalBlockSize: info?.logicalBlockSize ?? 0,
      physicalBlockSize: info?.physicalBlockSize ?? 0,
      readOnly: info?.readOnly ?? (entry.kind === 'disk' && entry.state.readOnly),
      direct: entry.kind === 'disk' && entry.state.direct,
      filters: [...(info?.filters ?? [])],
      inFlight: info?.inFlight ?? 0,
      cbt: info?.cbt ?? null,
      copies: info?.copies ?? null,
    };
  }

  #snapshotView(info: SnapshotInfo): SnapshotView {
    const images = info.images.map((image): ImageView => ({ ...image, uri: this.#uri(image.exportName) }));
    return {
      ...info,
      createdAt: new Date(info.createdAt).toISOString(),
      freeze: this.#freezes.get(info.id) ?? null,
      places: [...info.places],
      images,
    };
  }
}

function hear(events: EventLog, log: Log, event: SnapshotEvent): void {
  const { time, limitBytes, ...rest } = event;
  log.warn({ snapshot: event.snapshotId, disk: event.disk, error: event.error }, event.code);
  events.push({ ...rest, time: new Date(time).toISOString(), limitBytes: finite(limitBytes) });
}

function finite(bytes: number): number | null {
  return Number.isFinite(bytes) ? bytes : null;
}

function noSnapshot(id: string): BlksnapError {
  return new BlksnapError('ESRCH', `No snapshot "${id}": \`blksnap snapshot list\` shows those that are held`);
}

function makePrivate(directory: string): void {
  try {
    fs.mkdirSync(directory, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw toBlksnapError(cause, "Cannot make the daemon's directory");
  }
}
