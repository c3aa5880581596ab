/** The I/O threads of a daemon as one: the same calls as of a single thread, each passed to the thread that it is
 *  about, or to all.
 *
 *  A new disk goes to the thread with the fewest. Mapped devices live on the first thread, and so do disks that are
 *  mappable, and those that remembered mappings lie on. A client is accepted by the first thread, and handed to the one that has its export. */

import crypto from 'node:crypto';
import fs from 'node:fs';
import { dirname, join } from 'node:path';
import type { SnapshotEvent } from '../blksnap/events.ts';
import { JOURNAL_SUFFIX } from '../blksnap/journal-place.ts';
import { refuseSharedOrigin } from '../blksnap/origin-guard.ts';
import type { HandedOver } from '../nbd/server.ts';
import { BlksnapError } from '../util/errors.ts';
import { takeAcross } from './barrier-take.ts';
import type { TakePart } from './barrier-take.ts';
import { wholeDisk } from './disk-names.ts';
import { IoThread } from './io-thread-client.ts';
import type {
  ExportChange,
  IoCallName,
  IoCalls,
  IoHandlers,
  IoThreadOptions,
  IoThreadReady,
  SnapshotInfo,
} from './io-protocol.ts';
import { limitShares, merged, refuseOnePlace } from './snapshot-parts.ts';
import type { SnapshotPart } from './snapshot-parts.ts';

export const MAX_IO_THREADS = 16;

export interface IoThreadsOptions extends IoThreadOptions {
  readonly count: number;
  /** Disks for the first thread: those that remembered mappings lie on. */
  readonly belowMappings: ReadonlySet<string>;
  /** Disks that must live on one thread. */
  readonly together: ReadonlyArray<readonly string[]>;
}

export interface IoThreadsListener {
  event(event: SnapshotEvent): void;
  /** The kernel's connection to an export has ended. */
  kernelLeft(exportName: string): void;
  /** A thread ended by itself. */
  died(cause: BlksnapError): void;
}

/** Where a disk lives. */
interface Home {
  readonly thread: number;
  /** Null where the disk is no file or device. */
  readonly path: string | null;
}

/** A snapshot that is held or being taken. */
interface Held {
  /** As they were asked for. */
  readonly disks: readonly string[];
  readonly parts: readonly SnapshotPart[];
  /** Null: its only thread knows, or it is just being taken. */
  heldMs: number | null;
}

export class IoThreads {
  readonly #o: IoThreadsOptions;
  readonly #listener: IoThreadsListener;
  readonly #threads: IoThread[] = [];
  readonly #homes = new Map<string, Home>();
  /** Where each export is, as the threads tell. */
  readonly #exports = new Map<string, number>();
  readonly #snapshots = new Map<string, Held>();
  /** Of parts with an id of their own: the id of the whole. */
  readonly #wholes = new Map<string, string>();
  /** What threads are just being told of each other's exports. */
  readonly #telling = new Set<Promise<void>>();

  /** Errors: as IoThread.start; EOPNOTSUPP for several threads on a driver that cannot hand clients over. */
  static async start(options: IoThreadsOptions, listener: IoThreadsListener): Promise<IoThreads> {
    const io = new IoThreads(options, listener);
    try {
      await io.#add(0);
      io.#checkDriver();
      for (let index = 1; index < options.count; index++) await io.#add(index);
      return io;
    } catch (cause) {
      await io.stop();
      throw cause;
    }
  }

  private constructor(options: IoThreadsOptions, listener: IoThreadsListener) {
    this.#o = options;
    this.#listener = listener;
  }

  async #add(index: number): Promise<void> {
    const { driver, parameters, filterModules } = this.#o;
    this.#threads.push(
      await IoThread.start(
        { driver, parameters, filterModules },
        {
          event: (event) => this.#listener.event({ ...event, snapshotId: this.#wholeOf(event.snapshotId) }),
          kernelLeft: (exportName) => this.#listener.kernelLeft(exportName),
          died: (cause) => this.#listener.died(cause),
          exportChange: (change) => this.#exportChanged(index, change),
          handOver: (client) => this.#handOver(client),
        },
      ),
    );
  }

  #checkDriver(): void {
    const { driver, driverReason } = this.ready;
    if (this.#o.count === 1 || driver === 'uring') return;
    throw new BlksnapError(
      'EOPNOTSUPP',
      `Cannot run ${this.#o.count} I/O threads: the ${driver} driver (${driverReason}) cannot hand clients from one to another; use --io-threads 1`,
    );
  }

  /** Of the first thread. */
  get ready(): IoThreadReady {
    return this.#first.ready;
  }

  get count(): number {
    return this.#threads.length;
  }

  get #first(): IoThread {
    return this.#threads[0]!;
  }

  async call<Name extends IoCallName>(name: Name, args: IoCalls[Name]['args']): Promise<IoCalls[Name]['result']> {
    const result = await this.#routes[name](args);
    // A client that hears of a new export finds it.
    await Promise.all(this.#telling);
    return result;
  }

  /** Ends every thread. Errors: the first that came up. */
  async stop(): Promise<void> {
    const stops = this.#threads.map((thread) => thread.stop());
    await Promise.allSettled(stops);
    await Promise.all(stops);
  }

  readonly #routes: IoHandlers = {
    listen: (args) => this.#first.call('listen', args),
    setAccess: async (args) => void (await this.#all('setAccess', args)),
    attach: (args) => {
      const thread = args.mappable === true ? 0 : this.#threadFor(args.name);
      return this.#place({ name: args.name, path: args.path, thread }, (there) => there.call('attach', args));
    },
    mount: (args) => {
      const home = { name: args.name, path: null, thread: this.#threadFor(args.name) };
      return this.#place(home, (there) => there.call('mount', args));
    },
    detach: async (args) => {
      await this.#of(args.name).call('detach', args);
      this.#homes.delete(args.name);
    },
    checkDetach: (args) => this.#of(args.name).call('checkDetach', args),
    doubt: (args) => this.#of(args.name).call('doubt', args),
    disks: async () => (await this.#all('disks', {})).flat(),
    rescan: (args) => this.#of(args.name).call('rescan', args),
    resize: (args) => this.#of(args.name).call('resize', args),
    filters: async () => mergedFilters((await this.#all('filters', {})).flat()),
    filterAttach: (args) => this.#of(args.disk).call('filterAttach', args),
    filterDetach: (args) => this.#of(args.disk).call('filterDetach', args),
    filterCtl: (args) => this.#of(args.disk).call('filterCtl', args),
    dmRestore: async (args) => {
      const restored = await this.#first.call('dmRestore', args);
      for (const { kind, name, error } of restored) {
        if (kind === 'device' && error === null) this.#homes.set(name, { thread: 0, path: null });
      }
      return restored;
    },
    dmCreate: async (args) => {
      await this.#first.call('dmCreate', args);
      this.#homes.set(args.name, { thread: 0, path: null });
    },
    dmLoad: (args) => this.#first.call('dmLoad', args),
    dmSuspend: (args) => this.#first.call('dmSuspend', args),
    dmResume: (args) => this.#first.call('dmResume', args),
    dmMessage: (args) => this.#first.call('dmMessage', args),
    dmForget: (args) => this.#first.call('dmForget', args),
    dmRemap: (args) => this.#first.call('dmRemap', args),
    dmUnmap: (args) => this.#first.call('dmUnmap', args),
    dmList: (args) => this.#first.call('dmList', args),
    cbtMap: (args) => this.#of(args.name).call('cbtMap', args),
    cbtMarkDirty: (args) => this.#of(args.name).call('cbtMarkDirty', args),
    createSnapshot: (args) => this.#createSnapshot(args),
    restoreSnapshot: (args) => this.#restoreSnapshot(args),
    discardSnapshot: (args) => this.#first.call('discardSnapshot', args),
    appendStorage: (args) => this.#appendStorage(args),
    snapshots: async () => this.#merged((await this.#all('snapshots', {})).flat()),
    destroySnapshot: async ({ id }) => {
      for (const part of this.#partsOf(id)) await this.#threads[part.thread]!.call('destroySnapshot', { id: part.id });
      this.#forget(id);
    },
    letGoSnapshot: async ({ id }) => {
      for (const part of this.#partsOf(id)) await this.#threads[part.thread]!.call('letGoSnapshot', { id: part.id });
      this.#forget(id);
    },
    serveKernel: (args) => this.#offering(args.exportName).call('serveKernel', args),
    describeExport: (args) => this.#offering(args.exportName).call('describeExport', args),
    serveUblk: (args) => this.#offering(args.exportName).call('serveUblk', args),
    ublkEnded: async (args) => void (await this.#all('ublkEnded', args)),
    describeDevice: (args) => this.#offering(args.exportName).call('describeDevice', args),
    guardWritePath: async () => void (await this.#all('guardWritePath', {})),
    origins: notFromOutside,
    planSnapshot: notFromOutside,
    freezeSnapshot: notFromOutside,
    switchSnapshot: notFromOutside,
    finishSnapshot: notFromOutside,
    completeSnapshot: notFromOutside,
    abandonSnapshot: notFromOutside,
    elsewhere: notFromOutside,
    takeOver: (args) => this.#first.call('takeOver', args),
    stop: () => this.stop(),
  };

  // --- disks ----------------------------------------------------------------------------------

  async #place<T>(
    { name, path, thread }: Home & { readonly name: string },
    serve: (thread: IoThread) => Promise<T>,
  ): Promise<T> {
    if (path !== null) refuseSharedOrigin(path, this.#origins(name));
    this.#homes.set(name, { thread, path });
    try {
      return await serve(this.#threads[thread]!);
    } catch (cause) {
      this.#homes.delete(name);
      throw cause;
    }
  }

  #threadFor(name: string): number {
    const group = this.#o.together.find((names) => names.includes(name)) ?? [name];
    if (group.some((other) => this.#o.belowMappings.has(other))) return 0;
    const other = group.find((one) => this.#homes.has(one));
    return other === undefined ? this.#emptiest() : this.#homes.get(other)!.thread;
  }

  /** Of all disks but one. */
  #origins(except: string): Array<{ name: string; path: string | null }> {
    return [...this.#homes].flatMap(([name, { path }]) => (name === except ? [] : [{ name, path }]));
  }

  #emptiest(): number {
    const counts = this.#threads.map(() => 0);
    for (const { thread } of this.#homes.values()) counts[thread]!++;
    return counts.indexOf(Math.min(...counts));
  }

  /** The thread of a disk or partition; of one that is not there the first, which says so. */
  #of(name: string): IoThread {
    return this.#threads[this.#homeOf(name)]!;
  }

  #homeOf(name: string): number {
    return this.#homes.get(wholeDisk(name))?.thread ?? 0;
  }

  #all<Name extends IoCallName>(name: Name, args: IoCalls[Name]['args']): Promise<Array<IoCalls[Name]['result']>> {
    return Promise.all(this.#threads.map((thread) => thread.call(name, args)));
  }

  // --- exports and their clients --------------------------------------------------------------

  #exportChanged(thread: number, change: ExportChange): void {
    if (change.description === null) this.#exports.delete(change.name);
    else this.#exports.set(change.name, thread);
    for (const other of this.#threads) {
      if (other === this.#threads[thread]) continue;
      // One that has ended needs not to be told.
      const told: Promise<void> = other.call('elsewhere', change).catch(() => {});
      this.#telling.add(told);
      void told.then(() => this.#telling.delete(told));
    }
  }

  /** The thread of an export; of one that is not there the first, which says so. */
  #offering(exportName: string): IoThread {
    return this.#threads[this.#exports.get(exportName) ?? 0]!;
  }

  #handOver(client: HandedOver): void {
    const owner = this.#exports.get(client.exportName);
    const close = (): void => fs.closeSync(client.fd);
    // The export has just gone, or the thread with it.
    if (owner === undefined) close();
    else this.#threads[owner]!.call('takeOver', client).catch(close);
  }

  // --- snapshots ------------------------------------------------------------------------------

  /** Of one that is not there the first thread, which says so. */
  #partsOf(id: string): readonly SnapshotPart[] {
    return this.#snapshots.get(id)?.parts ?? [{ thread: 0, id, disks: [] }];
  }

  #hold(id: string, held: Held): void {
    this.#snapshots.set(id, held);
    for (const part of held.parts) if (part.id !== id) this.#wholes.set(part.id, id);
  }

  #forget(id: string): void {
    for (const part of this.#partsOf(id)) this.#wholes.delete(part.id);
    this.#snapshots.delete(id);
  }

  #wholeOf(id: string): string {
    return this.#wholes.get(id) ?? id;
  }

  async #createSnapshot(args: IoCalls['createSnapshot']['args']): Promise<SnapshotInfo> {
    const { id = crypto.randomUUID(), disks, journalPath } = args;
    this.#checkCount();
    const threads = [...new Set(disks.map((name) => this.#homeOf(name)))];
    // A file of its own for each persistent part, under a name of its own.
    const ownIds = journalPath !== undefined && threads.length > 1;
    const parts = threads.map((thread) => ({
      thread,
      id: ownIds ? crypto.randomUUID() : id,
      disks: disks.filter((name) => this.#homeOf(name) === thread),
    }));
    const held: Held = { disks, parts, heldMs: null };
    this.#hold(id, held);
    try {
      if (parts.length === 1) return await this.#threads[threads[0]!]!.call('createSnapshot', { ...args, id });
      refuseOnePlace(args.storagePath);
      const taken = await takeAcross(this.#takeParts(id, args, parts));
      held.heldMs = taken.heldMs;
      return merged(taken.parts, held);
    } catch (cause) {
      this.#forget(id);
      throw cause;
    }
  }

  async #restoreSnapshot(args: IoCalls['restoreSnapshot']['args']): Promise<SnapshotInfo | null> {
    const { id, whole } = args;
    const [thread = 0] = args.disks.map((name) => this.#homeOf(name));
    const restored = await this.#threads[thread]!.call('restoreSnapshot', args);
    if (restored === null) return null;
    const others = this.#snapshots.get(whole.id)?.parts ?? [];
    const part = { thread, id, disks: restored.images.map(({ disk }) => disk) };
    this.#hold(whole.id, { disks: whole.disks, parts: [...others, part], heldMs: restored.heldMs });
    return restored;
  }

  /** Each thread sees its own snapshots alone. */
  #checkCount(): void {
    const { maxSnapshots } = this.#o.parameters;
    if (this.#snapshots.size < maxSnapshots) return;
    throw new BlksnapError(
      'EBUSY',
      `Cannot take a snapshot: ${this.#snapshots.size} are held, as many as --max-snapshots allows; destroy one first`,
    );
  }

  #takeParts(id: string, args: IoCalls['createSnapshot']['args'], parts: readonly SnapshotPart[]): TakePart[] {
    const { disks, storagePath, journalPath } = args;
    const limits = limitShares(args.limitBytes, parts);
    const whole = { id, disks: [...disks], parts: parts.map((part) => part.id) };
    return parts.map((part, index) => {
      const kept =
        journalPath === undefined
          ? undefined
          : { journalPath: join(dirname(journalPath), `${part.id}${JOURNAL_SUFFIX}`), whole };
      return {
        thread: this.#threads[part.thread]!,
        args: {
          id: part.id,
          disks: part.disks,
          storagePath,
          limitBytes: limits[index]!,
          kept,
        },
      };
    });
  }

  async #appendStorage({ id, storagePath, limitBytes }: IoCalls['appendStorage']['args']): Promise<SnapshotInfo> {
    const parts = this.#partsOf(id);
    if (parts.length > 1 && storagePath !== null) refuseOnePlace(storagePath);
    const limits = limitShares(limitBytes, parts);
    const origins = await Promise.all(
      parts.map(({ thread, disks }) => this.#threads[thread]!.call('origins', { disks })),
    );
    const infos: SnapshotInfo[] = [];
    for (const [index, part] of parts.entries()) {
      const others = origins.toSpliced(index, 1).flat();
      const call = { id: part.id, storagePath, limitBytes: limits[index]!, others };
      infos.push(await this.#threads[part.thread]!.call('appendStorage', call));
    }
    return this.#merged(infos)[0]!;
  }

  #merged(infos: readonly SnapshotInfo[]): SnapshotInfo[] {
    const ids = [...new Set(infos.map(({ id }) => id))];
    return ids.flatMap((id) => {
      const parts = infos.filter((info) => info.id === id);
      const held = this.#snapshots.get(id);
      // Null: it is just being taken or destroyed.
      if (held === undefined) return [];
      if (held.parts.length === 1) return parts;
      return held.heldMs === null || parts.length < held.parts.length ? [] : [merged(parts, held)];
    });
  }
}

function notFromOutside(): Promise<never> {
  return Promise.reject(new BlksnapError('EINVAL', 'A step of the threads among themselves'));
}

function mergedFilters(lists: IoCalls['filters']['result']): IoCalls['filters']['result'] {
  const names = [...new Set(lists.map(({ name }) => name))];
  return names.map((name) => ({ name, disks: lists.filter((one) => one.name === name).flatMap(({ disks }) => disks) }));
}
