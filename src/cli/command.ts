/** What all commands have in common: `--dir`, `--json`, where the daemon is, an example in the help, one way to fail. */

import path from 'node:path';
import { InvalidArgumentError, Option } from 'commander';
import type { Command } from 'commander';
import type { Client } from '../api/client.ts';
import { VIAS } from '../kernel/provider.ts';

export interface CommonOptions {
  readonly dir?: string;
  readonly json?: boolean;
  readonly api?: string;
  readonly apiToken?: string;
  readonly apiCa?: string;
}

export interface CommandText {
  readonly summary: string;
  /** More, for the command's own help. */
  readonly more?: string;
  /** It does without a daemon. */
  readonly local?: boolean;
  readonly examples: readonly string[];
}

/** Adds a command: `usage` as commander wants it, `attach <path>`. */
export function addCommand(
  parent: Command,
  usage: string,
  { summary, more, local = false, examples }: CommandText,
): Command {
  const shown = examples.map((example) => `  $ blksnap ${example}`).join('\n');
  const command = parent
    .command(usage)
    .summary(summary)
    .description(more === undefined ? `${summary}.` : `${summary}. ${more}`)
    .option('--dir <dir>', "the daemon's directory (default: $BLKSNAP_DIR, or the place by convention)")
    .option('--json', 'print JSON')
    .addHelpText('after', `\nExample${examples.length > 1 ? 's' : ''}:\n${shown}`);
  if (local) return command;
  return command
    .addOption(new Option('--api <url>', 'a daemon that offers its API over TCP: https://host:port').conflicts('dir'))
    .option('--api-token <file>', 'the file that holds its token')
    .option('--api-ca <file>', "the certificate of its certificate's authority (default: those that Node trusts)");
}

/** Reads an option's value; what range it has, who uses it says. */
export function wholeNumber(text: string): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && Number.isSafeInteger(value)) return value;
  throw new InvalidArgumentError('Want a whole number.');
}

/** How to make kernel devices. */
export function viaOption(): Option {
  return new Option('--via <kind>', 'which kind of device in /dev (default: the best that the kernel has)').choices(
    VIAS,
  );
}

/** A client of the daemon in the directory, or at the URL, that was given. `signal` ends what it asks. */
export async function connect({ dir, api, apiToken, apiCa }: CommonOptions, signal?: AbortSignal): Promise<Client> {
  const { Client: ApiClient } = await import('../api/client.ts');
  return new ApiClient({ dir, url: api, tokenFile: apiToken, caFile: apiCa, signal });
}

/** The daemon works in another directory than the caller. */
export function absolute(given: string): string {
  return path.resolve(given);
}
