/** daemon: the one command that brings the daemon's code in. */

import { Option } from 'commander';
import type { Command } from 'commander';
import type { DriverName } from '../../io/open.ts';
import { parseHostPort } from '../../nbd/address.ts';
import { addCommand } from '../command.ts';
import type { CommonOptions } from '../command.ts';

interface DaemonOptions extends CommonOptions {
  readonly nbd: string;
  readonly io?: DriverName;
  readonly logLevel: 'info';
}

export function addDaemonCommand(program: Command): void {
  addCommand(program, 'daemon [disk...]', {
    summary: 'Run the daemon, in the foreground',
    more:
      'Attaches again what was attached when it last ended, and DISK… beside it. SIGINT and SIGTERM end it in order. ' +
      'By default its sockets are in /run/blksnap and its state in /var/lib/blksnap for root, ' +
      'in $XDG_RUNTIME_DIR/blksnap and $XDG_STATE_HOME/blksnap for others; with --dir both are in there.',
    examples: ['daemon', 'daemon --dir ~/snap --nbd 127.0.0.1:10809 disk.img'],
  })
    .option('--nbd <address>', 'where NBD clients connect: unix, or host:port', 'unix')
    .addOption(new Option('--io <driver>', 'the I/O driver (default: the best that works)').choices(['uring', 'portable']))
    .addOption(
      new Option('--log-level <level>', 'what to log, to standard error')
        .choices(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'])
        .default('info'),
    )
    .action(run);
}

async function run(disks: string[], options: DaemonOptions): Promise<void> {
  const nbd = options.nbd === 'unix' ? null : parseHostPort(options.nbd);
  const { runDaemon } = await import('../../api/run-daemon.ts');
  const cause = await runDaemon({
    dir: options.dir,
    nbd,
    driver: options.io ?? null,
    disks,
    logLevel: options.logLevel,
    json: options.json ?? false,
  });
  if (cause !== null) throw cause;
}
