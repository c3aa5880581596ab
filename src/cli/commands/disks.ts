/** attach, detach, mount, list, status: what the daemon serves. */

import type { Command } from 'commander';
import type { CbtView, Client, DiskView, StatusView } from '../../api/client.ts';
import { formatSeconds, formatSize } from '../../util/units.ts';
import { BlksnapError } from '../../util/errors.ts';
import type { Via } from '../../kernel/provider.ts';
import { absolute, addCommand, connect, viaOption } from '../command.ts';
import type { CommonOptions } from '../command.ts';
import { diskOf, ensureAttached } from '../devices.ts';
import { formatTime, printFields, printJson, printLine, printTable } from '../output.ts';

interface AttachOptions extends CommonOptions {
  readonly device?: readonly string[];
  readonly name?: string;
  readonly readOnly?: boolean;
  readonly direct?: boolean;
  readonly mappable?: boolean;
  readonly dev?: boolean;
  readonly via?: Via;
  readonly force?: boolean;
}

interface MountOptions extends CommonOptions {
  readonly disk: string;
  readonly point?: string;
  readonly name?: string;
}

export function addDiskCommands(program: Command): void {
  addCommand(program, 'attach [path]', {
    summary: 'Serve a file or block device over NBD and track its changes',
    more:
      'Prints the NBD URI. The daemon attaches it again at every start, and keeps the history of its changes. ' +
      'Block devices also get a device in /dev where the kernel can, which is printed then. ' +
      'A device-mapper volume (LVM, dm-crypt, …) is attached while it is in use, mounted or not. ' +
      "With --device it prints what the kernel module's console tool does.",
    examples: [
      'attach /srv/vm.img',
      'attach /dev/vdb --name data',
      'attach /srv/vm.img --dev',
      'attach /dev/mapper/vg-data',
    ],
  })
    .option(
      '-d, --device <path...>',
      'files or devices, instead of PATH; those that are attached already are no failure',
    )
    .option('--name <name>', "the disk's name (default: the file's, without extension)")
    .option('--read-only', 'refuse writes')
    .option('--direct', 'past the page cache (O_DIRECT)')
    .option('--mappable', 'on the first I/O thread, so that mapped devices can lie on it (with --io-threads)')
    .option('--dev', 'make a device in /dev, loading the kernel module for it')
    .option('--no-dev', 'make none; a device-mapper volume is then for the daemon alone, and must not be in use')
    .addOption(viaOption())
    .option('--force', 'a volume in use: also where the machine runs from it, or swaps to it')
    .action(attach);

  addCommand(program, 'detach [name]', {
    summary: 'End serving a disk or a mount',
    more:
      'A disk loses its change history: the next backup of it will be full. Refused while clients are connected. ' +
      'A volume that was attached in use gets its own table back, and stays in use.',
    examples: ['detach vm', 'detach vm --force'],
  })
    .alias('unmount')
    .option('-d, --device <device...>', 'disks by name or path, instead of NAME')
    .option('--force', 'cut clients off that are connected')
    .action(detach);

  addCommand(program, 'mount <directory>', {
    summary: 'Serve a restore point as a writable disk, at once',
    more: 'Nothing is copied, and the backup stays as it is: what is written to the disk goes when it is detached or the daemon ends.',
    examples: ['mount /backup --disk vm', 'mount /backup --disk vm --point 20261121T001843Z-7f3a'],
  })
    .requiredOption('--disk <name>', 'the disk that was backed up')
    .option('--point <id>', 'the restore point (default: the newest)')
    .option('--name <name>', 'the name to serve it by (default: the disk\'s and "-mount")')
    .action(mount);

  addCommand(program, 'list', { summary: 'List the disks and mounts', examples: ['list', 'list --json'] }).action(list);
  addCommand(program, 'resize <name>', {
    summary: "Take over the size that a disk's file or device has now",
    more:
      'After truncate, lvextend and the like: NBD clients learn the size when they connect again, kernel devices ' +
      '(ublk from Linux 6.16 on) at once. The next backup is full. ' +
      'Images keep their size; those that need what was cut off are lost.',
    examples: ['resize vm'],
  }).action(resize);
  addCommand(program, 'status', { summary: 'Tell what the daemon is and does', examples: ['status'] }).action(status);
  addCommand(program, 'cbt <name>', {
    summary: "Tell where the history of a disk's changes stands",
    examples: ['cbt vm'],
  }).action(cbt);
}

async function attach(path: string | undefined, options: AttachOptions): Promise<void> {
  const { name, readOnly, direct, mappable, dev: kernelDevice, via, force } = options;
  const client = await connect(options);
  if (path === undefined) {
    await attachDevices(client, options);
    return;
  }
  const disk = await client.attach({
    path: absolute(path),
    name,
    readOnly,
    direct,
    mappable,
    kernelDevice,
    via,
    force,
  });
  if (options.json) {
    printJson(disk);
    return;
  }
  printLine(disk.uri);
  if (disk.kernelDevice?.path != null) printLine(disk.kernelDevice.path);
}

/** As the kernel module's console tool. */
async function attachDevices(client: Client, options: AttachOptions): Promise<void> {
  const results: Array<{ device: string; already: boolean }> = [];
  for (const device of devicesOf(options, 'attach')) {
    const { already } = await ensureAttached(client, device, {
      name: options.name,
      readOnly: options.readOnly,
      direct: options.direct,
      mappable: options.mappable,
      kernelDevice: options.dev,
      via: options.via,
      force: options.force,
    });
    results.push({ device, already });
    if (!options.json) printLine(already ? 'Already was attached' : 'Attached successfully');
  }
  if (options.json) printJson({ attached: results });
}

function devicesOf({ device }: { readonly device?: readonly string[] }, verb: string): readonly string[] {
  if (device !== undefined) return device;
  throw new BlksnapError('EINVAL', `Cannot ${verb}: name a disk, or several with --device`);
}

async function detach(
  name: string | undefined,
  options: CommonOptions & { readonly device?: readonly string[]; readonly force?: boolean },
): Promise<void> {
  const client = await connect(options);
  const names = name === undefined ? [] : [name];
  if (name === undefined) {
    for (const device of devicesOf(options, 'detach')) names.push((await diskOf(client, device)).name);
  }
  for (const one of names) await client.detach(one, { force: options.force ?? false });
  if (options.json) printJson({ detached: names.length === 1 ? names[0] : names });
}

async function mount(directory: string, options: MountOptions): Promise<void> {
  const { disk, point, name } = options;
  const mounted = await (await connect(options)).mount({ directory: absolute(directory), disk, point, name });
  if (options.json) printJson(mounted);
  else printLine(mounted.uri);
}

async function list(options: CommonOptions): Promise<void> {
  const disks = await (await connect(options)).disks();
  if (options.json) printJson({ disks });
  else if (disks.length === 0) printLine('No disks. Attach one with `blksnap attach PATH`.');
  else printDisks(disks);
}

function printDisks(disks: readonly DiskView[]): void {
  printTable<DiskView>(
    [
      { heading: 'NAME', value: ({ name }) => name },
      { heading: 'SIZE', value: ({ state, size }) => (state === 'failed' ? '-' : formatSize(size)), right: true },
      { heading: 'STATE', value: stateOf },
      { heading: 'FILTERS', value: ({ filters }) => filters.join(', ') || '-' },
      { heading: 'PATH', value: ({ path, point }) => (point === null ? path : `${path} (${point})`) },
      { heading: 'DEVICE', value: ({ kernelDevice }) => kernelDevice?.path ?? '-' },
      { heading: 'URI', value: ({ uri }) => uri },
    ],
    disks,
  );
  printFailures(disks);
}

function printFailures(disks: readonly DiskView[]): void {
  for (const { name, failure, kernelDevice } of disks) {
    if (failure !== null) printLine(`${name}: ${failure.message}`);
    else if (kernelDevice?.failure != null) printLine(`${name}: no kernel device: ${kernelDevice.failure.message}`);
  }
}

function stateOf({ state, kind, readOnly, live }: DiskView): string {
  if (state === 'failed') return state;
  const how = [...(readOnly ? ['read-only'] : []), ...(live ? ['in use'] : [])];
  return [kind === 'mount' ? 'mounted' : 'attached', ...how].join(', ');
}

async function resize(name: string, options: CommonOptions): Promise<void> {
  const disk = await (await connect(options)).resize(name);
  if (options.json) printJson(disk);
  else printLine(formatSize(disk.size));
}

async function status(options: CommonOptions): Promise<void> {
  const client = await connect(options);
  const state = await client.status();
  if (options.json) {
    printJson(state);
    return;
  }
  printFields(statusFields(state));
  printFailures(await client.disks());
}

function statusFields(state: StatusView): Array<[string, string]> {
  const failed = state.failedDisks === 0 ? '' : ` (${state.failedDisks} failed)`;
  const driver = state.driverReason === '' ? state.driver : `${state.driver} (${state.driverReason})`;
  return [
    ['blksnap', state.version],
    ['process', `${state.pid}, since ${formatTime(state.startedAt)}`],
    ['sockets in', state.runDirectory],
    ['state in', state.stateDirectory],
    ['NBD', state.nbdUri],
    ['I/O driver', driver],
    ['I/O threads', String(state.ioThreads)],
    ['disks', `${state.disks}${failed}`],
    ['snapshots', `${state.snapshots}${state.refusedSnapshots === 0 ? '' : `, ${state.refusedSnapshots} refused`}`],
    ['kernel devices', String(state.kernelDevices)],
    ...copyFields(state.copies),
    ...parameterFields(state.parameters),
  ];
}

function copyFields(copies: StatusView['copies']): Array<[string, string]> {
  const { copiedChunks, zeroChunks, holeChunks, storedBytes, heldWrites, memoryWaits } = copies;
  return [
    [
      'copied chunks',
      `${copiedChunks} (${formatSize(storedBytes)}), spared ${zeroChunks} of zeros, ${holeChunks} in holes`,
    ],
    ['held writes', `${heldWrites}, of them for memory ${memoryWaits}`],
  ];
}

function parameterFields(parameters: StatusView['parameters']): Array<[string, string]> {
  const { trackingBlockMinShift, trackingBlockMaxShift, trackingBlockMaxCount } = parameters;
  const { copyUnitBytes, arenaBytes, copyMemoryBytes, cowTimeoutMs } = parameters;
  const { storagePortionBytes, maxSnapshots, maxSnapshotsPerDisk } = parameters;
  const sizes = `${formatSize(2 ** trackingBlockMinShift)} to ${formatSize(2 ** trackingBlockMaxShift)}`;
  const copies = `${formatSize(copyMemoryBytes)} for copies, waited for up to ${formatSeconds(cowTimeoutMs / 1000)}`;
  return [
    ['tracking blocks', `${sizes}, doubled above ${trackingBlockMaxCount}`],
    ['copy unit', formatSize(copyUnitBytes)],
    ['memory', `${formatSize(arenaBytes)}, of it ${copies}`],
    ['storage portion', formatSize(storagePortionBytes)],
    ['snapshots at most', `${maxSnapshots}, of one disk ${maxSnapshotsPerDisk}`],
    ['NBD clients at most', String(parameters.maxConnections)],
  ];
}

async function cbt(name: string, options: CommonOptions): Promise<void> {
  const client = await connect(options);
  const info: CbtView = await client.cbt(name);
  if (options.json) {
    printJson(info);
    return;
  }
  const map = await client.cbtMap(name);
  const marked = map.reduce((sum, number) => (number === 0 ? sum : sum + 1), 0);
  printFields([
    ['size', formatSize(info.size)],
    ['tracking block', formatSize(info.blockSize)],
    ['blocks', `${info.blockCount}, changed ${marked}`],
    ['generation', info.generationId],
    ['change number', String(info.changeNumber)],
    ['began because', info.reason === '' ? 'goes on from before' : info.reason],
  ]);
}
