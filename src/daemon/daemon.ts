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
import { formatNbdUri } from '../nbd/uri.ts';
import { makeDirectories } from '../util/directories.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { VERSION } from '../util/version.ts';
import { Disks } from './disks.ts';
import type { Host } from './host.ts';
import { IoThreads, MAX_IO_THREADS } from './io-threads.ts';
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

export interface DaemonOptions {
  readonly paths: DaemonPaths;
  /** Null: the unix socket in the run directory. */
  readonly nbd: SocketAddress | null;
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

export class Daemon {
  readonly #options: DaemonOptions;
  readonly #lock: FileLock;
  readonly #io: IoThreads;
  readonly #startedAt = new Date();
  /** Where NBD clients connect. */
  #nbdAddress: SocketAddress;
  #stopping: Promise<void> | null = null;
  readonly devices: KernelDevices;
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
      const io = await IoThreads.start(
        {
          count,
          belowMappings: disksBelowMappings(mappedStateFile(paths)),
          driver: options.driver,
          parameters: options.parameters ?? DEFAULT_PARAMETERS,
          filterModules: options.filterModules ?? [],
        },
        {
          event: (event) => daemon?.snapshots.hear(event),
          kernelLeft: (exportName) => void daemon?.devices.lost(exportName),
          died: (cause) => options.onFatal(cause),
        },
      );
      daemon = new Daemon(options, lock, io);
      for (const state of remembered) await daemon.disks.restore(state);
      await daemon.mapped.restore();
      await daemon.devices.restore();
      // Last, so that a client that comes back finds its disk.
      await daemon.#listen();
      return daemon;
    } catch (cause) {
      if (daemon === null) lock.release();
      else await daemon.stop();
      throw cause;
    }
  }

  private constructor(options: DaemonOptions, lock: FileLock, io: IoThreads) {
    this.#options = options;
    this.#lock = lock;
    this.#io = io;
    this.#nbdAddress = options.nbd ?? { kind: 'unix', path: options.paths.nbdSocket };
    const { paths, log } = options;
    const uri = (exportName: string): string => formatNbdUri({ address: this.#nbdAddress, exportName });
    const host: Host = { io, paths, log, serial: new Serial(), uri };
    this.devices = new KernelDevices(host);
    this.disks = new Disks(host, this.devices);
    this.snapshots = new Snapshots(host, { disks: this.disks, devices: this.devices });
    this.mapped = new Mapped(host, this.disks);
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
    this.snapshots.stop();
    try {
      await this.devices.stop();
      await this.#io.stop();
    } finally {
      this.#lock.release();
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
      nbdUri: formatNbdUri({ address: this.#nbdAddress, exportName: '' }),
      parameters: this.#options.parameters ?? DEFAULT_PARAMETERS,
      copies: totalOf(infos.flatMap(({ copies }) => copies ?? [])),
      disks: this.disks.size,
      failedDisks: this.disks.failed,
      snapshots: this.snapshots.size,
      kernelDevices: this.devices.size,
    };
  }
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
