/** The command line as commander has it: all commands, and how a mistake in it is told. */

import { Command } from 'commander';
import { BlksnapError } from '../util/errors.ts';
import { VERSION } from '../util/version.ts';
import { addBackupCommands } from './commands/backups.ts';
import { addClientCommands } from './commands/clients.ts';
import { addConsoleSnapshotCommands } from './commands/console-snapshots.ts';
import { addConsoleTrackingCommands } from './commands/console-tracking.ts';
import { addDaemonCommand, addRecoverCommand } from './commands/daemon.ts';
import { addDiskCommands } from './commands/disks.ts';
import { addFilterCommands } from './commands/filters.ts';
import { addMappedCommands } from './commands/dm.ts';
import { addPartitionCommands } from './commands/partitions.ts';
import { addServeCommand } from './commands/serve.ts';
import { addSnapshotCommands } from './commands/snapshots.ts';
import { EXIT_CODES_HELP } from './exit-codes.ts';
import { addAboutCommands } from './commands/about.ts';
import { printError } from './output.ts';

export function buildProgram(args: readonly string[], json: boolean): Command {
  const program = new Command('blksnap')
    .description('Snapshots, changed-block tracking and incremental backup of live block devices.')
    .version(VERSION, '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print help')
    .helpCommand('help [command]', 'print help for a command')
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({ outputError: (text) => printError(usageError(text, program, args), json) })
    .addHelpText(
      'after',
      `\nExample:\n  $ blksnap daemon &\n  $ blksnap attach disk.img\n  $ blksnap backup disk --to /backup\n\n${EXIT_CODES_HELP}`,
    );
  addDaemonCommand(program);
  addDiskCommands(program);
  addRecoverCommand(program);
  addPartitionCommands(program);
  addClientCommands(program);
  addMappedCommands(program);
  addFilterCommands(program);
  addSnapshotCommands(program);
  addBackupCommands(program);
  addServeCommand(program);
  addAboutCommands(program);
  program.commandsGroup("Commands of the kernel module's console tool:");
  addConsoleTrackingCommands(program);
  addConsoleSnapshotCommands(program);
  return program;
}

/** Commander's complaint on one line, without its prefix, and with the next step where it names none. */
function usageError(text: string, program: Command, args: readonly string[]): BlksnapError {
  const words = text
    .replace(/^error: /, '')
    .trim()
    .replace(/\n+/g, ' ')
    .replace(/\.$/, '');
  const next = words.includes('Did you mean') ? '' : `; see \`${commandIn(program, args)} --help\``;
  return new BlksnapError('EINVAL', words + next);
}

/** The command that the arguments name, as far as they name one. */
function commandIn(program: Command, args: readonly string[]): string {
  const named: string[] = [program.name()];
  let command: Command | undefined = program;
  for (const arg of args) {
    command = command.commands.find((one) => one.name() === arg || one.aliases().includes(arg));
    if (command === undefined) break;
    named.push(command.name());
  }
  return named.join(' ');
}
