/** The command `blksnap`: reads the command line, runs one command, turns its failure into words and
 *  an exit code. What a command needs is loaded when it runs, so that help and mistakes are quick. */

import { CommanderError } from 'commander';
import { toBlksnapError } from '../util/errors.ts';
import { separateValues } from './devices.ts';
import { EXIT_OK, EXIT_USAGE, exitCodeOf } from './exit-codes.ts';
import { printError } from './output.ts';
import { buildProgram } from './program.ts';

async function main(args: readonly string[]): Promise<number> {
  const json = args.includes('--json');
  try {
    await buildProgram(args, json).parseAsync(separateValues(args), { from: 'user' });
    return EXIT_OK;
  } catch (cause) {
    // Commander has printed what it had to say; help and version are no failures.
    if (cause instanceof CommanderError) return cause.exitCode === 0 ? EXIT_OK : EXIT_USAGE;
    printError(cause, json);
    return exitCodeOf(toBlksnapError(cause).code);
  }
}

// Whoever reads us may stop, as `head` does.
process.stdout.on('error', (cause: NodeJS.ErrnoException) => process.exit(cause.code === 'EPIPE' ? EXIT_OK : 1));

process.exitCode = await main(process.argv.slice(2));
