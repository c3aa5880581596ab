/** dm create, load, suspend, resume, remove, message, table, status, ls, remap, unmap. */

import fs from 'node:fs';
import type { Command } from 'commander';
import type { Client, MappedView } from '../../api/client.ts';
import { BlksnapError, toBlksnapError } from '../../util/errors.ts';
import { formatSize, parseSize } from '../../util/units.ts';
import { addCommand, connect } from '../command.ts';
import type { CommonOptions } from '../command.ts';
import { printJson, printLine, printTable } from '../output.ts';

interface TableOptions extends CommonOptions {
  readonly table?: string;
  readonly tableFile?: string;
  readonly sameData?: boolean;
}

interface ShowOptions extends CommonOptions {
  readonly inactive?: boolean;
}

interface RemapOptions extends CommonOptions {
  readonly at?: number;
  readonly copy: boolean;
}

export function addMappedCommands(program: Command): void {
  const dm = program
    .command('dm')
    .summary('Make disks from tables over other disks and files')
    .description('Mapped devices, with the tables, targets and output of dmsetup. Each is a disk like any other.');

  withTable(
    addCommand(dm, 'create <name>', {
      summary: 'Make a disk from a table',
      more: 'Devices in it are names of disks, or absolute paths. Prints the NBD URI.',
      examples: ["dm create joined --table '0 2048 linear vm 0'", 'dm create striped --table-file table.txt'],
    }),
  ).action(create);
  withTable(
    addCommand(dm, 'load <name>', {
      summary: 'Load the inactive table, which the next resume makes the live one',
      examples: ["dm load joined --table '0 2048 linear /srv/new.img 0' --same-data"],
    }),
  )
    .option('--same-data', 'it shows the same data: the history of changes goes on, snapshots may be held')
    .action(load);
  addCommand(dm, 'suspend <name>', {
    summary: 'Hold requests, and wait for those under way',
    examples: ['dm suspend joined'],
  }).action((name: string, options: CommonOptions) => change(options, (client) => client.suspendMapped(name)));
  addCommand(dm, 'resume <name>', {
    summary: 'Make the inactive table the live one, if there is one, and let requests go',
    examples: ['dm resume joined'],
  }).action((name: string, options: CommonOptions) => change(options, (client) => client.resumeMapped(name)));
  addCommand(dm, 'remove <name>', { summary: 'Remove a mapped device', examples: ['dm remove joined'] }).action(remove);
  addCommand(dm, 'message <name> <sector> <words...>', {
    summary: 'Send a message to the target at a sector',
    examples: ['dm message dusty 0 addbadblock 60'],
  }).action(message);
  addCommand(dm, 'table [name]', { summary: 'Print tables', examples: ['dm table', 'dm table joined'] })
    .option('--inactive', 'the inactive ones')
    .action((name: string | undefined, options: ShowOptions) =>
      show(name, options, (device) => (options.inactive === true ? device.inactiveTable : device.table)),
    );
  addCommand(dm, 'status [name]', {
    summary: 'Print what targets tell of themselves',
    examples: ['dm status joined'],
  }).action((name: string | undefined, options: CommonOptions) => show(name, options, (device) => device.status));
  addCommand(dm, 'ls', { summary: 'List mapped devices and redirected ranges', examples: ['dm ls'] }).action(list);
  addRemapCommands(dm);
}

function addRemapCommands(dm: Command): void {
  addCommand(dm, 'remap <disk> <offset> <length> <mapped>', {
    summary: 'Redirect a range of a disk into a mapped device, while the disk is used',
    more: 'The data of the range is copied there first, while requests are held.',
    examples: ['dm remap vm 0 1G fast', 'dm remap vm 1G 1G fast --at 4G --no-copy'],
  })
    .option('--at <offset>', 'where in the mapped device (default: at its start)', parseSize)
    .option('--no-copy', 'show what the mapped device holds; the history of changes begins anew')
    .action(remap);
  addCommand(dm, 'unmap <disk> <offset>', {
    summary: 'Take a redirected range back',
    more: 'Its data is copied back first, while requests are held.',
    examples: ['dm unmap vm 0'],
  })
    .option('--no-copy', 'show what the disk held before; the history of changes begins anew')
    .action(unmap);
}

function withTable(command: Command): Command {
  return command
    .option('--table <table>', 'the table, one or more lines')
    .option('--table-file <file>', 'the file that holds it');
}

function tableOf({ table, tableFile }: TableOptions): string {
  if ((table === undefined) === (tableFile === undefined)) {
    throw new BlksnapError('EINVAL', 'Cannot tell the table: give one of --table and --table-file');
  }
  if (table !== undefined) return table;
  try {
    return fs.readFileSync(tableFile!, 'utf8');
  } catch (cause) {
    throw toBlksnapError(cause, `Cannot read the table from "${tableFile}"`);
  }
}

async function create(name: string, options: TableOptions): Promise<void> {
  const table = tableOf(options);
  const disk = await (await connect(options)).createMapped({ name, table });
  if (options.json) printJson(disk);
  else printLine(disk.uri);
}

async function load(name: string, options: TableOptions): Promise<void> {
  const request = { table: tableOf(options), sameData: options.sameData ?? false };
  await change(options, (client) => client.loadMapped(name, request));
}

async function change(options: CommonOptions, task: (client: Client) => Promise<MappedView>): Promise<void> {
  const device = await task(await connect(options));
  if (options.json) printJson(device);
}

async function remove(name: string, options: CommonOptions): Promise<void> {
  await (await connect(options)).removeMapped(name);
  if (options.json) printJson({ removed: name });
}

async function message(name: string, sector: string, words: string[], options: CommonOptions): Promise<void> {
  if (!/^\d{1,15}$/.test(sector)) throw new BlksnapError('EINVAL', `Cannot send to sector "${sector}": want a number`);
  const answer = await (await connect(options)).messageMapped(name, { sector: Number(sector), text: words.join(' ') });
  if (options.json) printJson({ answer });
  else if (answer !== '') printLine(answer);
}

/** As dmsetup: with the device's name before each line, unless one was named. */
async function show(
  name: string | undefined,
  options: CommonOptions,
  lines: (device: MappedView) => readonly string[],
): Promise<void> {
  const { devices } = await (await connect(options)).mapped();
  const wanted = name === undefined ? devices : devices.filter((device) => device.name === name);
  if (name !== undefined && wanted.length === 0)
    throw new BlksnapError('ENOENT', `No mapped device "${name}": \`blksnap dm ls\` shows them`);
  if (options.json) {
    printJson({ devices: wanted.map((device) => ({ name: device.name, lines: lines(device) })) });
    return;
  }
  if (wanted.length === 0) printLine('No devices found');
  for (const device of wanted) {
    const prefix = name === undefined ? `${device.name}: ` : '';
    const told = lines(device);
    // A table that is not there is an empty line.
    for (const line of told.length > 0 ? told : ['']) printLine(prefix + line);
  }
}

async function list(options: CommonOptions): Promise<void> {
  const view = await (await connect(options)).mapped();
  if (options.json) {
    printJson(view);
    return;
  }
  if (view.devices.length === 0) printLine('No mapped devices. Make one with `blksnap dm create NAME --table TABLE`.');
  else {
    printTable<MappedView>(
      [
        { heading: 'NAME', value: ({ name }) => name },
        { heading: 'SIZE', value: ({ size }) => formatSize(size), right: true },
        { heading: 'STATE', value: ({ suspended }) => (suspended ? 'suspended' : 'active') },
        { heading: 'TABLES', value: ({ inactiveTable }) => (inactiveTable.length > 0 ? 'live, inactive' : 'live') },
      ],
      view.devices,
    );
  }
  for (const { disk, offset, length, to, at } of view.remaps) {
    printLine(`${length} bytes at ${offset} of disk "${disk}" lie at ${at} of "${to}"`);
  }
}

async function remap(disk: string, offset: string, length: string, to: string, options: RemapOptions): Promise<void> {
  const range = { disk, offset: parseSize(offset), length: parseSize(length), to, at: options.at ?? 0 };
  await (await connect(options)).remap({ ...range, copy: options.copy });
  if (options.json) printJson({ remapped: range });
}

async function unmap(disk: string, offset: string, options: RemapOptions): Promise<void> {
  const place = { disk, offset: parseSize(offset) };
  await (await connect(options)).unmap({ ...place, copy: options.copy });
  if (options.json) printJson({ unmapped: place });
}
