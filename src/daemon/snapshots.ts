/** The snapshots of a daemon: held, and prepared ones that are not taken yet, with their events. A take counts as an
 *  operation on each of its disks. */

import crypto from 'node:crypto';
import path from 'node:path';
import type { SnapshotEvent } from '../blksnap/events.ts';
import { JOURNAL_SUFFIX } from '../blksnap/journal-place.ts';
import { READ_ONCE } from '../blksnap/read-once-image.ts';
import { checkStoragePlace } from '../blksnap/storage-place.ts';
import { makeDirectories } from '../util/directories.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { wholeDisk } from './disk-names.ts';
import type { Disks } from './disks.ts';
import { EventLog } from './event-log.ts';
import type { Waiting } from './event-log.ts';
import { takeMounted } from './frozen-mounts.ts';
import { FREEZE_TIMEOUT_MS, takeFrozen } from './freeze-hooks.ts';
import type { FreezeReport } from './freeze-hooks.ts';
import type { Host } from './host.ts';
import type { KernelDevices } from './kernel-devices.ts';
import type { IoCalls, SnapshotInfo } from './io-protocol.ts';
import type { FoundJournal } from './journals.ts';
import { Leases } from './leases.ts';
import { foundSnapshots, wholeOf } from './persistent-memo.ts';
import type { FoundSnapshot } from './persistent-memo.ts';
import { PreparedSnapshots } from './prepared-snapshots.ts';
import { RefusedSnapshots } from './refused-snapshots.ts';
import type { SnapshotRequest } from './requests.ts';
import type { EventView, ImageView, PreparedView, SnapshotView } from './views.ts';

/** Of bringing a part of a snapshot back. */
type Outcome = 'back' | 'unfinished' | BlksnapError;

export class Snapshots {
  readonly #host: Host;
  readonly #disks: Disks;
  readonly #devices: KernelDevices;
  readonly #events = new EventLog();
  readonly #prepared = new PreparedSnapshots();
  /** How freezing for the held snapshots went. */
  readonly #freezes = new Map<string, FreezeReport>();
  readonly #refused = new RefusedSnapshots();
  readonly #leases = new Leases((id) => void this.#expire(id));

  constructor(host: Host, { disks, devices }: { readonly disks: Disks; readonly devices: KernelDevices }) {
    this.#host = host;
    this.#disks = disks;
    this.#devices = devices;
  }

  /** How many are held. */
  get size(): number {
    return this.#events.size - this.#prepared.size - this.#refused.size;
  }

  /** How many persistent ones could not be brought back. */
  get refused(): number {
    return this.#refused.size;
  }

  /** Brings persistent snapshots back, before anybody can write to their disks. One that cannot be is shown with the
   *  reason. */
  async restore(journals: readonly FoundJournal[]): Promise<void> {
    const outcomes = new Map<string, Outcome>();
    // Of each disk in the order of their takes, whatever snapshots they are parts of.
    for (const journal of journals) outcomes.set(journal.id, await this.#restore(journal));
    for (const found of foundSnapshots(journals)) await this.#settle(found, outcomes);
  }

  async #restore(journal: FoundJournal): Promise<Outcome> {
    const { id, path: journalPath, plan } = journal;
    try {
      if (plan === null) throw new BlksnapError('EBADMSG', `Cannot use journal "${journalPath}": it has no plan`);
      const disks = plan.disks.map(({ name }) => name);
      const info = await this.#host.io.call('restoreSnapshot', { id, journalPath, disks, whole: wholeOf(journal) });
      return info === null ? 'unfinished' : 'back';
    } catch (cause) {
      return toBlksnapError(cause);
    }
  }

  /** All parts are back, or none. */
  async #settle(found: FoundSnapshot, outcomes: ReadonlyMap<string, Outcome>): Promise<void> {
    const { id, disks, parts } = found.whole;
    const of = parts.map((part) => outcomes.get(part));
    const { log, io } = this.#host;
    if (of.includes('unfinished')) {
      if (of.includes('back')) await io.call('destroySnapshot', { id });
      for (const { id: part, path: journalPath } of found.journals)
        if (outcomes.get(part) instanceof BlksnapError) await io.call('discardSnapshot', { journalPath });
      log.info({ snapshot: id, disks }, 'unfinished snapshot removed');
      return;
    }
    this.#events.open(id);
    const missing = parts.find((part) => !outcomes.has(part));
    const failed = of.find((outcome) => outcome instanceof BlksnapError);
    const error =
      missing === undefined
        ? failed
        : new BlksnapError('ESTALE', `Cannot bring the snapshot back: its journal ${missing} is missing`);
    if (error === undefined) {
      log.info({ snapshot: id, disks }, 'snapshot is back');
      return;
    }
    if (of.includes('back')) await io.call('letGoSnapshot', { id });
    this.#refuse(found, error);
  }

  #refuse(found: FoundSnapshot, error: BlksnapError): void {
    const { id } = found.whole;
    this.#host.log.error({ snapshot: id, error: error.message }, 'snapshot cannot be brought back');
    this.#refused.add(found, error);
    const sizes = { requestedBytes: null, usedBytes: 0, limitBytes: null };
    const event = { time: new Date().toISOString(), snapshotId: id, error: error.code, ...sizes };
    const planned = found.journals.flatMap(({ plan }) => plan?.disks.map(({ name }) => name) ?? []);
    for (const disk of new Set([...planned, ...found.whole.disks.map(wholeDisk)]))
      this.#events.push({ ...event, disk, code: 'corrupted' });
  }

  /** Takes an event from the I/O thread. */
  hear(event: SnapshotEvent): void {
    const { time, limitBytes, ...rest } = event;
    this.#host.log.warn({ snapshot: event.snapshotId, disk: event.disk, error: event.error }, event.code);
    this.#events.push({ ...rest, time: new Date(time).toISOString(), limitBytes: finite(limitBytes) });
  }

  /** Freezes all the disks at one instant. Errors: EINVAL for no disk or the same twice; ENOENT; what the storage fails with. */
  async create(request: SnapshotRequest, id?: string): Promise<SnapshotView> {
    const { disks } = request;
    if (disks.length === 0) throw new BlksnapError('EINVAL', 'Cannot take a snapshot of no disk: name at least one');
    const twice = disks.find((name, index) => disks.indexOf(name) !== index);
    if (twice !== undefined)
      throw new BlksnapError('EINVAL', `Cannot take a snapshot of disk "${twice}" twice: name it once`);
    for (const name of disks) this.#disks.check(name);
    const kept = this.#persistent(request, id);
    if (kept !== null) this.#refusePersistent(disks);
    if (request.storage !== undefined) this.#disks.checkPlace(request.storage);
    const storagePath = request.storage ?? (kept === null ? this.#host.paths.state : this.#host.paths.snapshots);
    return await this.#host.serial.run(
      disks.map((name) => `disk ${wholeDisk(name)}`),
      async () => {
        const limitBytes = request.limitBytes ?? null;
        const info = await this.#take(request, { id, ...kept, disks, storagePath, limitBytes });
        await this.#undoStrayed(info);
        await this.#addDevices(info, request);
        this.#events.open(info.id);
        if (request.leaseMs !== undefined) this.#leases.grant(info.id, request.leaseMs);
        this.#host.log.info({ snapshot: info.id, disks, heldMs: info.heldMs }, 'snapshot taken');
        return this.#snapshotView(info);
      },
    );
  }

  /** Images have kernel devices where their disks do. Errors: as KernelDevices.add; the snapshot is then destroyed. */
  async #addDevices({ id, images }: SnapshotInfo, request: SnapshotRequest): Promise<void> {
    try {
      for (const { disk, exportName } of images) {
        const view = this.#devices.view(wholeDisk(disk));
        await this.#devices.add(exportName, request, { wanted: view !== null && view.path !== null, via: view?.via });
      }
    } catch (cause) {
      for (const { exportName } of images) await this.#devices.remove(exportName);
      await this.#host.io.call('destroySnapshot', { id });
      throw cause;
    }
  }

  /** Of a persistent snapshot: its id, and where its journal goes. Errors: EINVAL. */
  #persistent({ persistent, leaseMs }: SnapshotRequest, id: string = crypto.randomUUID()) {
    if (persistent !== true) return null;
    if (leaseMs !== undefined)
      throw new BlksnapError('EINVAL', 'Cannot take a persistent snapshot with a lease: it stays; leave the lease out');
    const { snapshots } = this.#host.paths;
    makeDirectories(snapshots, 0o700);
    return { id, journalPath: path.join(snapshots, `${id}${JOURNAL_SUFFIX}`) };
  }

  /** The take, while file systems are frozen, between its hooks where it has some. */
  async #take(request: SnapshotRequest, args: IoCalls['createSnapshot']['args']): Promise<SnapshotInfo> {
    const { hooks = {}, fsfreeze = true } = request;
    const { freeze, thaw, timeoutMs = FREEZE_TIMEOUT_MS } = hooks;
    const undo = ({ id }: SnapshotInfo): Promise<void> => this.#host.io.call('destroySnapshot', { id });
    const { paths } = this.#host;
    const take = async (): Promise<{ info: SnapshotInfo; frozenMs: number | null }> => {
      const { taken, frozenMs } = await takeMounted({
        devices: fsfreeze ? this.#devices.pathsOf(args.disks) : [],
        ownPlaces: [paths.state, paths.run, ...(args.storagePath.startsWith('/') ? [args.storagePath] : [])],
        limitMs: timeoutMs,
        take: () => this.#host.io.call('createSnapshot', args),
        undo,
      });
      return { info: taken, frozenMs };
    };
    if (freeze === undefined || thaw === undefined) {
      const { info, frozenMs } = await take();
      if (frozenMs !== null) this.#freezes.set(info.id, { frozenMs, thawError: null });
      return info;
    }
    const steps = { take: async () => (await take()).info, undo };
    const { taken, report } = await takeFrozen({ freeze, thaw, timeoutMs }, args.disks, steps);
    this.#freezes.set(taken.id, report);
    if (report.thawError !== null) this.#host.log.error({ snapshot: taken.id, error: report.thawError }, 'not thawed');
    return taken;
  }

  /** A volume whose table was swapped by somebody else before the take has been written unseen. Errors: ESTALE. */
  async #undoStrayed({ id, images }: SnapshotInfo): Promise<void> {
    const names = new Set(images.map(({ disk }) => wholeDisk(disk)));
    const strayed = await this.#disks.strayedOf(names);
    if (strayed === null) return;
    await this.#host.io.call('destroySnapshot', { id });
    throw strayed;
  }

  /** A volume in use comes back, after a daemon that ended in order, on another backend. Errors: EOPNOTSUPP. */
  #refusePersistent(disks: readonly string[]): void {
    const { liveNames } = this.#disks;
    const live = disks.find((name) => liveNames.has(wholeDisk(name)));
    if (live === undefined) return;
    throw new BlksnapError(
      'EOPNOTSUPP',
      `Cannot keep a snapshot of "${live}" over restarts: its volume is attached in use; take it without --persistent`,
    );
  }

  #checkedStorage(given: string | undefined): string {
    if (given !== undefined) this.#disks.checkPlace(given);
    return given ?? this.#host.paths.state;
  }

  /** Every held snapshot, oldest first. */
  async list(): Promise<SnapshotView[]> {
    const infos = await this.#host.io.call('snapshots', {});
    return [...infos.map((info) => this.#snapshotView(info)), ...this.#refused.list()].sort((a, b) =>
      a.createdAt < b.createdAt ? -1 : 1,
    );
  }

  /** Errors: ESRCH. */
  async get(id: string): Promise<SnapshotView> {
    const view = (await this.list()).find((candidate) => candidate.id === id);
    if (view === undefined) throw noSnapshot(id);
    return view;
  }

  /** Errors: ESRCH; EBUSY for an image whose kernel device is mounted, unless forced. */
  async destroy(id: string, { force = false }: { readonly force?: boolean } = {}): Promise<void> {
    const refused = this.#refused.get(id);
    if (refused !== undefined) {
      await this.#discard(refused);
      return;
    }
    const { images } = await this.get(id);
    await this.#host.serial.run(
      images.map(({ disk }) => `disk ${wholeDisk(disk)}`),
      async () => {
        const exportNames = images.map(({ exportName }) => exportName);
        const held = await this.#devices.hold(exportNames, { dataStays: false, force });
        await this.#devices.removeHeld(held);
        await this.#host.io.call('destroySnapshot', { id });
        this.#events.close(id);
        this.#freezes.delete(id);
        this.#leases.end(id);
        this.#host.log.info({ snapshot: id }, 'snapshot destroyed');
      },
    );
  }

  /** Gives up one that could not be brought back, and its files. */
  async #discard({ whole: { id }, journals }: FoundSnapshot): Promise<void> {
    for (const { path: journalPath } of journals) await this.#host.io.call('discardSnapshot', { journalPath });
    this.#refused.forget(id);
    this.#events.close(id);
    this.#host.log.info({ snapshot: id }, 'snapshot destroyed');
  }

  /** Its client is there still. Errors: ESRCH. */
  async renew(id: string): Promise<SnapshotView> {
    this.#leases.renew(id);
    return await this.get(id);
  }

  /** Its client is gone. */
  async #expire(id: string): Promise<void> {
    this.#host.log.warn({ snapshot: id }, 'nobody renews the snapshot any more');
    try {
      await this.destroy(id);
    } catch (cause) {
      if ((cause as BlksnapError).code === 'ESRCH') return;
      this.#host.log.error({ snapshot: id, error: (cause as Error).message }, 'cannot be destroyed');
      this.#leases.renew(id);
    }
  }

  /** Destroys those that show one of the disks, mounted or not. */
  async destroyOf(disks: ReadonlySet<string>): Promise<void> {
    for (const { id, images } of await this.list()) {
      if (images.some(({ disk }) => disks.has(wholeDisk(disk)))) await this.destroy(id, { force: true });
    }
  }

  /** The daemon ends, and all snapshots with it but persistent ones. */
  stop(): void {
    this.#leases.endAll();
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
    if (storage !== undefined) this.#checkedStorage(storage);
    const info = await this.#host.io.call('appendStorage', {
      id,
      storagePath: storage ?? null,
      limitBytes: limitBytes ?? null,
    });
    this.#host.log.info({ snapshot: id, storage, limitBytes: info.limitBytes }, 'storage appended');
    return this.#snapshotView(info);
  }

  /** Gives out the id of a snapshot that `takePrepared` will take. Errors: EINVAL for a disk twice; ENOENT; what can be
   *  seen now that the storage will fail with. */
  async prepare(request: SnapshotRequest): Promise<PreparedView> {
    for (const name of request.disks) this.#disks.check(name);
    const { disks, storage, limitBytes } = request;
    const storagePath = this.#checkedStorage(storage);
    await checkStoragePlace(storagePath, `Cannot use "${storagePath}" as diff storage`);
    const prepared = this.#prepared.create({ disks, storagePath, limitBytes: limitBytes ?? null });
    this.#events.open(prepared.id);
    return prepared;
  }

  prepared(): PreparedView[] {
    return this.#prepared.list();
  }

  /** Errors: ENOENT, ESRCH; EALREADY when the disk is in it. */
  addDisk(id: string, disk: string): PreparedView {
    this.#disks.check(disk);
    return this.#prepared.add(id, disk);
  }

  /** Takes a prepared snapshot. Errors: ESRCH, and as `create`: it is then prepared as before. */
  async takePrepared(id: string): Promise<SnapshotView> {
    const prepared = this.#prepared.remove(id);
    const { disks, storagePath: storage, limitBytes } = prepared;
    try {
      return await this.create({ disks, storage, limitBytes: limitBytes ?? undefined }, id);
    } catch (cause) {
      this.#prepared.restore(prepared);
      throw cause;
    }
  }

  /** Errors: ESRCH when there is no such prepared snapshot. */
  forget(id: string): void {
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

  #snapshotView(info: SnapshotInfo): SnapshotView {
    const images = info.images.map((image): ImageView => {
      const { exportName } = image;
      const readOnceUri = this.#host.uri(`${exportName}${READ_ONCE}`);
      const kernelDevice = this.#devices.view(exportName);
      return { ...image, uri: this.#host.uri(exportName), readOnceUri, kernelDevice };
    });
    return {
      ...info,
      createdAt: new Date(info.createdAt).toISOString(),
      freeze: this.#freezes.get(info.id) ?? null,
      places: [...info.places],
      leaseMs: this.#leases.of(info.id),
      failure: null,
      images,
    };
  }
}

function finite(bytes: number): number | null {
  return Number.isFinite(bytes) ? bytes : null;
}

function noSnapshot(id: string): BlksnapError {
  return new BlksnapError('ESRCH', `No snapshot "${id}": \`blksnap snapshot list\` shows those that are held`);
}
