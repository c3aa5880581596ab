/** daemon: the one command that brings the daemon's code in. */

import { Option } from 'commander';
import type { Command } from 'commander';
import type { Parameters } from '../../blksnap/parameters.ts';
import type { DriverName } from '../../io/open.ts';
import { parseHostPort } from '../../nbd/address.ts';
import { parseSize } from '../../util/units.ts';
import { absolute, addCommand, wholeNumber } from '../command.ts';
import type { CommonOptions } from '../command.ts';
import { printJson, printLine } from '../output.ts';

interface DaemonOptions extends CommonOptions {
  readonly nbd: string;
  readonly nbdShared?: string;
  readonly tlsCertificates?: string;
  readonly tlsVerifyPeer?: boolean;
  readonly tlsPsk?: string;
  readonly apiTcp?: string;
  readonly insecureTcp?: boolean;
  readonly io?: DriverName;
  readonly ioThreads: number;
  readonly logLevel: 'info';
  readonly filterModule?: readonly string[];
  readonly trackingBlockMinShift?: number;
  readonly trackingBlockMaxShift?: number;
  readonly trackingBlockMaxCount?: number;
  readonly copyUnit?: number;
  readonly arena?: number;
  readonly copyMemory?: number;
  readonly cowTimeout?: number;
  readonly storagePortion?: number;
  readonly maxSnapshots?: number;
  readonly maxSnapshotsPerDisk?: number;
  readonly maxConnections?: number;
}

export function addDaemonCommand(program: Command): void {
  const size = (text: string): number => parseSize(text);
  addCommand(program, 'daemon [disk...]', {
    summary: 'Run the daemon, in the foreground',
    more:
      'Attaches again what was attached when it last ended, and DISK… beside it. SIGINT and SIGTERM end it in order. ' +
      'By default its sockets are in /run/blksnap and its state in /var/lib/blksnap for root, ' +
      'in $XDG_RUNTIME_DIR/blksnap and $XDG_STATE_HOME/blksnap for others; with --dir both are in there.',
    local: true,
    examples: ['daemon', 'daemon --dir ~/snap --nbd 127.0.0.1:10809 disk.img'],
  })
    .option('--nbd <address>', 'where NBD clients connect: unix (the owner alone), or host:port as well', 'unix')
    .option('--nbd-shared <path>', 'and a unix socket for users of this machine, with what `blksnap allow` gave them')
    .option(
      '--tls-certificates <dir>',
      'TLS on host:port with ca-cert.pem, server-cert.pem and server-key.pem (docs/security.md)',
    )
    .option('--tls-verify-peer', 'only for clients with a certificate of the same authority, by its name')
    .option('--tls-psk <file>', 'TLS on host:port with pre-shared keys, as psktool writes them')
    .option('--api-tcp <address>', 'offer the API on host:port too, off loopback with --tls-certificates')
    .option('--api-token <file>', 'what clients of --api-tcp must bring; made where the file is missing')
    .option('--insecure-tcp', 'listen without TLS where other machines can connect')
    .addOption(
      new Option('--io <driver>', 'the I/O driver (default: the best that works)').choices(['uring', 'portable']),
    )
    .option('--io-threads <n>', 'threads that disks are spread over, 1 to 16', wholeNumber, 1)
    .addOption(
      new Option('--log-level <level>', 'what to log, to standard error')
        .choices(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'])
        .default('info'),
    )
    .option('--filter-module <module...>', 'load filters from a file or package (docs/filters.md)')
    .option('--tracking-block-min-shift <n>', 'tracking blocks have at least 2^n bytes (default: 16)', wholeNumber)
    .option('--tracking-block-max-shift <n>', 'and at most 2^n (default: 26)', wholeNumber)
    .option(
      '--tracking-block-max-count <n>',
      'a disk has at most n of them, if they may be as large (default: 2097152)',
      wholeNumber,
    )
    .option('--copy-unit <size>', 'what a write saves at least, a power of two from 4K to 1M (default: 4K)', size)
    .option('--arena <size>', 'memory for all data on its way (default: 128M)', size)
    .option('--copy-memory <size>', 'the part of it for copies (default: 32M)', size)
    .option(
      '--cow-timeout <ms>',
      'longest wait of a write for copy memory, before the snapshot is lost (default: 10000)',
      wholeNumber,
    )
    .option('--storage-portion <size>', 'what the storage of a snapshot grows by (default: 1G)', size)
    .option('--max-snapshots <n>', 'most snapshots at once (default: 256)', wholeNumber)
    .option('--max-snapshots-per-disk <n>', 'most snapshots of one disk (default: 64)', wholeNumber)
    .option(
      '--max-connections <n>',
      'most NBD clients at once, if the arena has room for them (default: 256)',
      wholeNumber,
    )
    .action(run);
}

interface RecoverOptions extends CommonOptions {
  readonly filterModule?: readonly string[];
}

export function addRecoverCommand(program: Command): void {
  addCommand(program, 'recover', {
    summary: 'Give volumes in use their own tables back where the daemon is gone',
    more:
      'After a daemon that was killed, the I/O of volumes that it had attached in use waits for the next one. A new ' +
      '`blksnap daemon` takes them up again by itself; this is for when there shall be none for a while. They are ' +
      'attached again at the next start; `blksnap detach` ends that.',
    local: true,
    examples: ['recover'],
  })
    .option('--filter-module <module...>', 'as the daemon had them')
    .action(recover);
}

async function recover(options: RecoverOptions): Promise<void> {
  const { dir, json = false, filterModule: filterModules = [] } = options;
  const { recoverVolumes } = await import('../../api/run-daemon.ts');
  const recovered = await recoverVolumes({ dir, filterModules, json, logLevel: 'warn' });
  if (json) printJson({ recovered });
  else if (recovered.length === 0) printLine('No volume was attached in use.');
  for (const { disk, volume } of json ? [] : recovered) printLine(`${volume} has its own table again (disk ${disk})`);
}

async function run(disks: string[], options: DaemonOptions): Promise<void> {
  const nbd = options.nbd === 'unix' ? null : parseHostPort(options.nbd);
  const parameters = await givenParameters(options);
  const { runDaemon } = await import('../../api/run-daemon.ts');
  const cause = await runDaemon({
    dir: options.dir,
    nbd,
    sharedSocket: options.nbdShared === undefined ? null : absolute(options.nbdShared),
    tls: {
      certificates: options.tlsCertificates,
      verifyPeer: options.tlsVerifyPeer,
      psk: options.tlsPsk,
    },
    tcpApi: { address: options.apiTcp, tokenFile: options.apiToken },
    insecureTcp: options.insecureTcp ?? false,
    driver: options.io ?? null,
    ioThreads: options.ioThreads,
    parameters,
    filterModules: options.filterModule ?? [],
    disks,
    logLevel: options.logLevel,
    json: options.json ?? false,
  });
  if (cause !== null) throw cause;
}

/** Errors: EINVAL, with the option's name. */
async function givenParameters(options: DaemonOptions): Promise<Parameters> {
  const { checkedParameters } = await import('../../blksnap/parameters.ts');
  const { trackingBlockMinShift, trackingBlockMaxShift, trackingBlockMaxCount, maxSnapshots, maxSnapshotsPerDisk } =
    options;
  return checkedParameters({
    trackingBlockMinShift,
    trackingBlockMaxShift,
    trackingBlockMaxCount,
    copyUnitBytes: options.copyUnit,
    arenaBytes: options.arena,
    copyMemoryBytes: options.copyMemory,
    cowTimeoutMs: options.cowTimeout,
    storagePortionBytes: options.storagePortion,
    maxSnapshots,
    maxSnapshotsPerDisk,
    maxConnections: options.maxConnections,
  });
}
