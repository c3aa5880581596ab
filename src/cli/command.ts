/** What all commands have in common: `--dir`, `--json`, an example in the help, one way to fail. */

import path from 'node:path';
import { Option } from 'commander';
import type { Command } from 'commander';
import type { Client } from '../api/client.ts';
import { VIAS } from '../kernel/provider.ts';

export interface CommonOptions {
  readonly dir?: string;
  readonly json?: boolean;
}

export interface CommandText {
  readonly summary: string;
  /** More, for the command's own help. */
  readonly more?: string;
  readonly examples: readonly string[];
}

/** Adds a command: `usage` as commander wants it, `attach <path>`. */
export function addCommand(parent: Command, usage: string, { summary, more, examples }: CommandText): Command {
  const shown = examples.map((example) => `  $ blksnap ${example}`).join('\n');
  return parent
    .command(usage)
    .summary(summary)
    .description(more === undefined ? `${summary}.` : `${summary}. ${more}`)
    .option('--dir <dir>', "the daemon's directory (default: $BLKSNAP_DIR, or the place by convention)")
    .option('--json', 'print JSON')
    .addHelpText('after', `\nExample${examples.length > 1 ? 's' : ''}:\n${shown}`);
}

/** How to make kernel devices. */
export function viaOption(): Option {
  return new Option('--via <kind>', 'which kind of device in /dev (default: the best that the kernel has)').choices(
    VIAS,
  );
}

/** A client of the daemon in the directory that was given. */
export async function connect({ dir }: CommonOptions): Promise<Client> {
  const { Client: ApiClient } = await import('../api/client.ts');
  return new ApiClient({ dir });
}

/** The daemon works in another directory than the caller. */
export function absolute(given: string): string {
  return path.resolve(given);
}
