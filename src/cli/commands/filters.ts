/** filter list, attach, detach, ctl. */

import type { Command } from 'commander';
import type { FilterView } from '../../api/client.ts';
import { BlksnapError } from '../../util/errors.ts';
import { addCommand, connect } from '../command.ts';
import type { CommonOptions } from '../command.ts';
import { printJson, printLine, printTable } from '../output.ts';

interface AttachOptions extends CommonOptions {
  readonly options?: unknown;
}

interface CtlOptions extends CommonOptions {
  readonly payload?: unknown;
}

export function addFilterCommands(program: Command): void {
  const filter = program
    .command('filter')
    .summary("List, attach, detach and command disks' filters")
    .description(
      'Filters see every request to a disk on its way. `blksnap daemon --filter-module` loads kinds of your own.',
    );

  addCommand(filter, 'list', {
    summary: 'List the kinds of filters, and the disks that have each',
    examples: ['filter list'],
  }).action(list);
  addCommand(filter, 'attach <name> <filter>', {
    summary: 'Attach a filter to a disk, while it is used',
    more: 'The daemon attaches it again at every start.',
    examples: ['filter attach vm rate-limiter --options \'{"bytesPerSecond":1000000}\''],
  })
    .option('--options <json>', "the filter's own options", parseJson)
    .action(attach);
  addCommand(filter, 'detach <name> <filter>', {
    summary: 'Detach a filter from a disk, while it is used',
    examples: ['filter detach vm rate-limiter'],
  }).action(detach);
  addCommand(filter, 'ctl <name> <filter> <command>', {
    summary: "Give a filter a command of its own, and print the answer's JSON",
    examples: [
      'filter ctl vm rate-limiter stats',
      'filter ctl vm rate-limiter rate --payload \'{"bytesPerSecond":5000000}\'',
    ],
  })
    .option('--payload <json>', 'what the command takes', parseJson)
    .action(ctl);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new BlksnapError('EINVAL', `Cannot read "${text}": want JSON`, { cause });
  }
}

async function list(options: CommonOptions): Promise<void> {
  const filters = await (await connect(options)).filters();
  if (options.json) printJson({ filters });
  else {
    printTable<FilterView>(
      [
        { heading: 'FILTER', value: ({ name }) => name },
        { heading: 'DISKS', value: ({ disks }) => (disks.length === 0 ? '-' : disks.join(', ')) },
      ],
      filters,
    );
  }
}

async function attach(name: string, filter: string, options: AttachOptions): Promise<void> {
  const disk = await (await connect(options)).attachFilter(name, filter, options.options);
  if (options.json) printJson(disk);
  else printLine(`${name}: ${disk.filters.join(', ')}`);
}

async function detach(name: string, filter: string, options: CommonOptions): Promise<void> {
  await (await connect(options)).detachFilter(name, filter);
  if (options.json) printJson({ disk: name, detached: filter });
}

async function ctl(name: string, filter: string, command: string, options: CtlOptions): Promise<void> {
  printJson(await (await connect(options)).filterCtl(name, { filter, command, payload: options.payload }));
}
