/** The daemon as a process: starts it and its API, and ends both in order on SIGINT or SIGTERM. */

import type { Parameters } from '../blksnap/parameters.ts';
import { Daemon } from '../daemon/daemon.ts';
import { resolveFilterModule } from '../daemon/filter-modules.ts';
import { openLog } from '../daemon/log.ts';
import type { LogLevel } from '../daemon/log.ts';
import { daemonPaths } from '../daemon/paths.ts';
import type { DriverName } from '../io/open.ts';
import type { SocketAddress } from '../io/reactor.ts';
import { refuseExposed } from '../nbd/address.ts';
import { loadServerCredentials } from '../nbd/tls-credentials.ts';
import type { ServerCredentials, ServerFiles } from '../nbd/tls-credentials.ts';
import { BlksnapError } from '../util/errors.ts';
import { VERSION } from '../util/version.ts';
import type { ApiServer } from './server.ts';
import { openTcpApi } from './tcp-api.ts';
import type { TcpApiRequest } from './tcp-api.ts';

export interface DaemonProcessOptions {
  /** Where its sockets and state go; undefined for the place by convention. */
  readonly dir: string | undefined;
  /** Null: only the unix socket in the directory. */
  readonly nbd: SocketAddress | null;
  readonly sharedSocket: string | null;
  /** What TLS on TCP needs. */
  readonly tls: ServerFiles;
  readonly tcpApi: TcpApiRequest;
  /** TCP without TLS where other machines can connect. */
  readonly insecureTcp: boolean;
  /** Null: the best that works. */
  readonly driver: DriverName | null;
  readonly ioThreads: number;
  readonly parameters: Parameters;
  /** Modules of filters: files, or packages that can be found from here. */
  readonly filterModules: readonly string[];
  /** Attached at the start, unless they are. */
  readonly disks: readonly string[];
  readonly logLevel: LogLevel;
  readonly json: boolean;
}

/** Resolves with null when the daemon ended in order, or with why it could not go on.
 *  Rejects when it cannot start. */
export async function runDaemon(options: DaemonProcessOptions): Promise<BlksnapError | null> {
  const log = openLog(options.logLevel, !options.json && process.stderr.isTTY);
  let end: (cause: BlksnapError | null) => void = () => {};
  const ended = new Promise<BlksnapError | null>((resolve) => (end = resolve));
  const signals = ['SIGINT', 'SIGTERM'] as const;
  const onSignal = (signal: string): void => {
    log.info({ signal }, 'ending');
    end(null);
  };
  for (const signal of signals) process.once(signal, onSignal);

  const filterModules = options.filterModules.map((given) => resolveFilterModule(given, process.cwd()));
  const paths = daemonPaths(options.dir);
  const { nbd, sharedSocket, driver, ioThreads, parameters } = options;
  const credentials = loadedCredentials(options);
  const tcp = openTcpApi(options.tcpApi, { credentials, insecureTcp: options.insecureTcp });
  const starting = Daemon.start({
    paths,
    nbd,
    tls: nbd === null ? null : credentials,
    sharedSocket,
    driver,
    ioThreads,
    parameters,
    filterModules,
    log,
    onFatal: end,
  });
  // The API's code loads while the I/O thread starts.
  const [{ serveApi }, { serveApiOnTcp }, daemon] = await Promise.all([
    import('./server.ts'),
    import('./tcp-server.ts'),
    starting,
  ]);
  const servers: ApiServer[] = [];
  try {
    await attachMissing(daemon, options.disks);
    servers.push(await serveApi(paths.apiSocket, daemon, log));
    const overTcp = tcp === null ? null : await serveApiOnTcp({ daemon, log }, tcp);
    if (overTcp !== null) servers.push(overTcp);
    const { nbdUri, driver: used, driverReason } = await daemon.status();
    log.info(
      {
        version: VERSION,
        api: paths.apiSocket,
        ...(overTcp === null ? {} : { apiTcp: overTcp.url }),
        nbd: nbdUri,
        driver: used,
        ...(driverReason === '' ? {} : { driverReason }),
      },
      'ready',
    );
    const cause = await ended;
    if (cause !== null) log.fatal({ err: cause.cause ?? cause }, `cannot go on: ${cause.message}`);
    return cause;
  } finally {
    await Promise.all(servers.map((server) => server.close()));
    for (const signal of signals) process.off(signal, onSignal);
    await daemon.stop();
    log.info('ended');
  }
}

/** Errors: EINVAL for TLS without an address, and for an open address without TLS. */
function loadedCredentials({ nbd, tcpApi, tls, insecureTcp }: DaemonProcessOptions): ServerCredentials | null {
  const credentials = loadServerCredentials(tls);
  if (nbd !== null) refuseExposed(nbd, { tls: credentials !== null, insecure: insecureTcp });
  else if (credentials !== null && tcpApi.address === undefined) {
    throw new BlksnapError(
      'EINVAL',
      'Cannot use TLS: the unix socket is for its owner alone; give --nbd host:port or --api-tcp host:port',
    );
  }
  return credentials;
}

/** Gives volumes that were attached in use their own tables back where the daemon is gone: starts one for the time that
 *  takes. Errors: EBUSY when one runs; what the first volume fails with. */
export async function recoverVolumes(
  options: Pick<DaemonProcessOptions, 'dir' | 'filterModules' | 'logLevel' | 'json'>,
): Promise<Array<{ disk: string; volume: string }>> {
  const log = openLog(options.logLevel, !options.json && process.stderr.isTTY);
  const filterModules = options.filterModules.map((given) => resolveFilterModule(given, process.cwd()));
  let onFatal: (cause: BlksnapError) => void = () => {};
  const fatal = new Promise<never>((_, reject) => (onFatal = reject));
  const paths = daemonPaths(options.dir);
  const daemon = await Daemon.start({ paths, nbd: null, driver: null, filterModules, log, onFatal });
  try {
    const given = await Promise.race([daemon.giveBack(), fatal]);
    const failed = given.find(({ failure }) => failure !== null);
    if (failed?.failure != null) throw failed.failure;
    return given.map(({ disk, volume }) => ({ disk, volume }));
  } finally {
    await daemon.stop();
  }
}

async function attachMissing(daemon: Daemon, disks: readonly string[]): Promise<void> {
  for (const path of disks) {
    try {
      await daemon.disks.attach({ path });
    } catch (cause) {
      if ((cause as BlksnapError).code !== 'EALREADY') throw cause;
    }
  }
}
