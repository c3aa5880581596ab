/** allow, disallow, clients: which clients may use which disks. */

import type { Command } from 'commander';
import { addCommand, connect } from '../command.ts';
import type { CommonOptions } from '../command.ts';
import { printJson, printLine } from '../output.ts';

interface ClientOptions extends CommonOptions {
  readonly client: string;
}

const WHO = "a certificate's CN, a pre-shared key's name, or uid:N for a user of this machine";

export function addClientCommands(program: Command): void {
  addCommand(program, 'allow <name>', {
    summary: 'Allow a client to use a disk',
    more:
      'With its partitions, and the images of its snapshots. For others that come with a name, or without, the disk does ' +
      'not exist. Remembered until the disk is detached.',
    examples: ['allow vm --client alice', 'allow vm --client uid:1000'],
  })
    .requiredOption('--client <name>', WHO)
    .action(allow);
  addCommand(program, 'disallow <name>', {
    summary: 'Take back what `allow` gave',
    more: "Ends the client's connections to the disk.",
    examples: ['disallow vm --client alice'],
  })
    .requiredOption('--client <name>', WHO)
    .action(disallow);
  addCommand(program, 'clients <name>', {
    summary: 'List the clients that may use a disk',
    examples: ['clients vm'],
  }).action(clients);
}

async function allow(name: string, options: ClientOptions): Promise<void> {
  const allowed = await (await connect(options)).allow(name, options.client);
  if (options.json) printJson({ clients: allowed });
}

async function disallow(name: string, options: ClientOptions): Promise<void> {
  const allowed = await (await connect(options)).disallow(name, options.client);
  if (options.json) printJson({ clients: allowed });
}

async function clients(name: string, options: CommonOptions): Promise<void> {
  const allowed = await (await connect(options)).clients(name);
  if (options.json) printJson({ clients: allowed });
  else if (allowed === null) printLine('No rule: its owner, and clients that come without a name where they can.');
  else if (allowed.length === 0) printLine('Its owner alone.');
  else for (const client of allowed) printLine(client);
}
