/** The daemon, control side: one directory, its I/O threads, the disks and the snapshots on it. The API hands its
 *  requests to `disks` and `snapshots`.
 *
 *  What runs side by side: operations on one disk follow one another; the take of a snapshot counts
 *  as an operation on each of its disks; everything else is free. Does no block I/O itself. */

import fs from 'node:fs';
import { totalOf } from '../blksnap/copy-counters.ts';
import { DEFAULT_PARAMETERS } from '../blksnap/parameters.ts';
import type { Parameters } from '../blksnap/parameters.ts';
import type { DriverName } from '../io/open.ts';
import type { SocketAddress } from '../io/reactor.ts';
import { isLocal } from '../nbd/address.ts';
import type { Visitor } from '../nbd/server.ts';
import type { ServerCredentials } from '../nbd/tls-credentials.ts';
import { TlsFront } from '../nbd/tls-front.ts';
import { formatNbdUri } from '../nbd/uri.ts';
import { makeDirectories } from '../util/directories.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { VERSION } from '../util/version.ts';
import { ClientRules, loadRules } from './client-rules.ts';
import type { RememberedRules } from './client-rules.ts';
import { Disks } from './disks.ts';
import type { Host } from './host.ts';
import type { ClientsFrom } from './io-protocol.ts';
import { isLive } from './live-disks.ts';
import type { GivenBack } from './live-disks.ts';
import { IoThreads, MAX_IO_THREADS } from './io-threads.ts';
import { disksTogether, findJournals } from './journals.ts';
import { KernelDevices } from './kernel-devices.ts';
import { lockDirectory } from './lock.ts';
import type { FileLock } from '../io/lock-file.ts';
import type { Log } from './log.ts';
import type { DaemonPaths } from './paths.ts';
import { Serial } from './serial.ts';
import { Snapshots } from './snapshots.ts';
import { loadState } from './state.ts';
import { Mapped } from './mapped.ts';
import { disksBelowMappings, mappedStateFile } from './mapped-state.ts';
import type { StatusView } from './views.ts';

/** How soon it is seen that somebody else has swapped a volume's table. */
const WATCH_MS = 1000;

export interface DaemonOptions {
  readonly paths: DaemonPaths;
  /** Where clients connect, beside the unix socket in the run directory, which is for the owner alone. */
  readonly nbd: SocketAddress | null;
  /** For the TCP address. Default: no TLS there. */
  readonly tls?: ServerCredentials | null;
  /** A unix socket for all users of the machine: each can use the disks that it was allowed to. */
  readonly sharedSocket?: string | null;
  /** Null: the best that works. */
  readonly driver: DriverName | null;
  /** 1 to 16; default 1. */
  readonly ioThreads?: number;
  readonly parameters?: Parameters | undefined;
  /** URLs of modules that register filters. */
  readonly filterModules?: readonly string[];
  readonly log: Log;
  /** Called when the daemon cannot go on. */
  readonly onFatal: (cause: BlksnapError) => void;
}

interface Parts {
  readonly lock: FileLock;
  readonly io: IoThreads;
  readonly rules: RememberedRules;
}

export class Daemon {
  readonly #options: DaemonOptions;
  readonly #lock: FileLock;
  readonly #io: IoThreads;
  readonly #rules: ClientRules;
  readonly #startedAt = new Date();
  /** Where NBD clients connect. */
  #nbdAddress: SocketAddress;
  #front: TlsFront | null = null;
  #stopping: Promise<void> | null = null;
  readonly devices: KernelDevices;
  /** An I/O thread has ended by itself. */
  #died = false;
  #watching: NodeJS.Timeout | undefined;
  readonly disks: Disks;
  readonly snapshots: Snapshots;
  readonly mapped: Mapped;

  /** Locks the directory, starts the I/O threads and attaches the disks that are remembered. One that
   *  cannot be attached is reported by `disks`, and keeps nothing else from starting.
   *  Errors: EBUSY when another daemon has the directory; EBADMSG for a broken state file; EINVAL; EOPNOTSUPP for
   *  several I/O threads on the portable driver. */
  static async start(options: DaemonOptions): Promise<Daemon> {
    const { paths, ioThreads: count = 1 } = options;
    checkCount(count);
    for (const directory of [paths.run, paths.state, paths.cbt]) makePrivate(directory);
    const lock = lockDirectory(paths.lockFile);
    let daemon: Daemon | null = null;
    try {
      const remembered = loadState(paths.stateFile);
      const rules = loadRules(paths);
      const journals = findJournals(paths.snapshots);
      const io = await IoThreads.start(
        {
          count,
          belowMappings: disksBelowMappings(mappedStateFile(paths)),
          together: disksTogether(journals),
          driver: options.driver,
          parameters: options.parameters ?? DEFAULT_PARAMETERS,
          filterModules: options.filterModules ?? [],
        },
        {
          event: (event) => daemon?.snapshots.hear(event),
          kernelLeft: (exportName) => void daemon?.devices.lost(exportName),
          died: (cause) => (daemon === null ? options.onFatal(cause) : daemon.#end(cause)),
        },
      );
      daemon = new Daemon(options, { lock, io, rules });
      for (const state of remembered.disks.filter((one) => !isLive(one))) await daemon.disks.restore(state);
      // Before anything can write to the disks.
      await daemon.snapshots.restore(journals);
      await daemon.mapped.restore(remembered.mapped);
      await daemon.devices.restore();
      // Whose kernel devices wait for them.
      for (const state of remembered.disks.filter(isLive)) await daemon.disks.recover(state);
      await daemon.#restoreRules();
      // Last, so that a client that comes back finds its disk.
      await daemon.#listen();
      daemon.#watch();
      return daemon;
    } catch (cause) {
      if (daemon === null) lock.release();
      else await daemon.stop();
      throw cause;
    }
  }

  private constructor(options: DaemonOptions, { lock, io, rules: remembered }: Parts) {
    this.#options = options;
    this.#lock = lock;
    this.#io = io;
    this.#nbdAddress = options.nbd ?? { kind: 'unix', path: options.paths.nbdSocket };
    const { paths, log } = options;
    const serial = new Serial();
    this.#rules = new ClientRules({ io, paths, log, serial, remembered });
    const host: Host = { io, paths, log, serial, rules: this.#rules, uri: (exportName) => this.#uri(exportName) };
    this.devices = new KernelDevices(host);
    this.disks = new Disks(host, this.devices);
    this.snapshots = new Snapshots(host, { disks: this.disks, devices: this.devices });
    this.mapped = new Mapped(host, this.disks);
  }

  #uri(exportName: string): string {
    const isSecure = this.#options.nbd !== null && this.#isSecure;
    return formatNbdUri({ address: this.#nbdAddress, exportName, ...(isSecure ? { tls: {} } : {}) });
  }

  get #isSecure(): boolean {
    return (this.#options.tls ?? null) !== null;
  }

  async #restoreRules(): Promise<void> {
    const names = new Set((await this.disks.list()).map(({ name }) => name));
    await this.#rules.restore((disk) => names.has(disk));
  }

  #end(cause: BlksnapError): void {
    this.#died = true;
    this.#options.onFatal(cause);
  }

  async #listen(): Promise<void> {
    const { nbd, paths, sharedSocket = null } = this.#options;
    await this.#listenOnSocket(paths.nbdSocket, 'owner');
    if (sharedSocket !== null) await this.#listenOnSocket(sharedSocket, 'users');
    if (nbd === null) return;
    this.#nbdAddress = this.#isSecure
      ? await this.#listenForTls(nbd)
      : await this.#io.call('listen', { address: nbd, clients: 'nameless' });
    if (!isLocal(nbd) && !this.#isSecure) {
      this.#options.log.warn(
        'whoever reaches the NBD address can read and write the disks, and whoever is between sees all',
      );
    }
  }

  async #listenOnSocket(path: string, clients: ClientsFrom): Promise<void> {
    // Whoever made this socket is gone: we hold the lock.
    if (isSocket(path)) fs.rmSync(path);
    await this.#io.call('listen', { address: { kind: 'unix', path }, clients });
  }

  async #listenForTls(address: SocketAddress): Promise<SocketAddress> {
    const credentials = this.#options.tls!;
    this.#front = await TlsFront.listen(address, {
      credentials,
      onClient: (client) => void this.#admit(client),
      onDropped: (reason) => this.#options.log.warn({ reason }, 'dropped a TLS client'),
    });
    return this.#front.address;
  }

  async #admit(client: Visitor): Promise<void> {
    try {
      await this.#io.call('takeOver', client);
    } catch {
      // The thread has ended, and never had it.
      fs.closeSync(client.fd);
    }
  }

  /** Ends I/O in flight, closes the disks, gives the directory back. Snapshots end with the daemon, but
   *  for persistent ones. Safe to call twice. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  async #stop(): Promise<void> {
    clearInterval(this.#watching);
    this.snapshots.stop();
    try {
      await this.giveBack();
      await this.devices.stop();
      await this.#io.stop();
    } finally {
      await this.#front?.close();
      this.#lock.release();
    }
  }

  /** Sees to it that volumes in use have their own tables again, while there is somebody to serve them. The next daemon
   *  attaches them again. */
  async giveBack(): Promise<GivenBack[]> {
    const { liveNames } = this.disks;
    if (liveNames.size === 0 || this.#died) return [];
    await this.snapshots.destroyOf(liveNames);
    return await this.disks.release();
  }

  #watch(): void {
    let looking = false;
    this.#watching = setInterval(() => {
      if (looking) return;
      looking = true;
      void this.#look().finally(() => (looking = false));
    }, WATCH_MS);
  }

  async #look(): Promise<void> {
    try {
      await this.disks.findStrayed();
    } catch (cause) {
      this.#options.log.error({ err: cause }, 'cannot tell whether volumes still lead here');
    }
  }

  async status(): Promise<StatusView> {
    const { paths } = this.#options;
    const infos = await this.#io.call('disks', {});
    return {
      version: VERSION,
      pid: process.pid,
      startedAt: this.#startedAt.toISOString(),
      runDirectory: paths.run,
      stateDirectory: paths.state,
      driver: this.#io.ready.driver,
      driverReason: this.#io.ready.driverReason,
      ioThreads: this.#io.count,
      nbdUri: this.#uri(''),
      parameters: this.#options.parameters ?? DEFAULT_PARAMETERS,
      copies: totalOf(infos.flatMap(({ copies }) => copies ?? [])),
      disks: this.disks.size,
      failedDisks: this.disks.failed,
      snapshots: this.snapshots.size,
      kernelDevices: this.devices.size,
      refusedSnapshots: this.snapshots.refused,
    };
  }
}

function isSocket(path: string): boolean {
  return fs.statSync(path, { throwIfNoEntry: false })?.isSocket() ?? false;
}

/** Errors: EINVAL. */
function checkCount(ioThreads: number): void {
  if (Number.isInteger(ioThreads) && ioThreads >= 1 && ioThreads <= MAX_IO_THREADS) return;
  throw new BlksnapError('EINVAL', `--io-threads ${ioThreads}: want a whole number from 1 to ${MAX_IO_THREADS}`);
}

function makePrivate(directory: string): void {
  try {
    makeDirectories(directory, 0o700);
  } catch (cause) {
    throw toBlksnapError(cause, "Cannot make the daemon's directory");
  }
}
