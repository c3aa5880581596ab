/** snapshot create, list, show, events, append, destroy. */

import type { Command } from 'commander';
import type { Client, EventView, SnapshotView } from '../../api/client.ts';
import { BlksnapError } from '../../util/errors.ts';
import { formatSeconds, formatSize, parseSize } from '../../util/units.ts';
import type { Via } from '../../kernel/provider.ts';
import { absolute, addCommand, connect, viaOption, wholeNumber } from '../command.ts';
import type { CommonOptions } from '../command.ts';
import { onInterrupt } from '../interrupt.ts';
import { formatTime, printError, printFields, printJson, printLine, printTable } from '../output.ts';

export interface HookOptions {
  readonly freeze?: string;
  readonly thaw?: string;
  readonly freezeTimeout?: number;
  readonly fsfreeze: boolean;
}

interface CreateOptions extends CommonOptions, HookOptions {
  readonly storage?: string;
  readonly limit?: number;
  readonly dev?: boolean;
  readonly via?: Via;
  readonly persistent?: boolean;
}

interface EventOptions extends CommonOptions {
  readonly follow?: boolean;
}

const MEMORY = ':memory:';

export function addSnapshotCommands(program: Command): void {
  const snapshot = program
    .command('snapshot')
    .summary('Take, list, show, watch and destroy snapshots')
    .description(
      'Snapshots show disks as they were at one instant. They last until they are destroyed or the daemon ends; persistent ones come back with it.',
    );

  addCommand(snapshot, 'create <name...>', {
    summary: 'Freeze disks at one instant',
    more:
      'Prints the id and the NBD URI of the image of each disk, and its device in /dev where it has one, as the images of ' +
      'disks that have one do. Images are writable; their writes go with them. Those of a persistent snapshot are ' +
      'read-only, and are there again after a restart or kill -9 of the daemon.',
    examples: [
      'snapshot create vm',
      'snapshot create system data --storage /var/tmp --limit 10G',
      'snapshot create vm --persistent --storage /var/lib/blksnap',
    ],
  })
    .option('--persistent', 'outlives the daemon; a write that touches data first waits until its copy is recorded')
    .option(
      '--storage <place>',
      'where overwritten data goes: a directory, a new or unused file, a block device, or :memory:',
    )
    .option('--limit <size>', 'most that may be kept there', (text: string) => parseSize(text))
    .option('--dev', 'make a device in /dev for each image, loading the kernel module for it')
    .option('--no-dev', 'make none')
    .addOption(viaOption())
    .option(
      '--no-fsfreeze',
      "leave file systems on the disks' kernel devices running, where they are frozen by default",
    )
    .option('--freeze <command>', 'run by the daemon before the take; if it fails there is no snapshot')
    .option('--thaw <command>', 'run after it, whatever happened; both know $BLKSNAP_DISKS')
    .option(
      '--freeze-timeout <ms>',
      'longest time from the freeze to the end of the take (default: 30000)',
      wholeNumber,
    )
    .action(create);

  addCommand(snapshot, 'list', { summary: 'List the snapshots that are held', examples: ['snapshot list'] }).action(
    list,
  );
  addCommand(snapshot, 'show <id>', { summary: 'Show one snapshot', examples: ['snapshot show 0b5f…'] }).action(show);
  addCommand(snapshot, 'events <id>', {
    summary: 'Tell what happened to a snapshot',
    examples: ['snapshot events 0b5f…', 'snapshot events 0b5f… --follow --json'],
  })
    .option('-f, --follow', 'go on until the snapshot is destroyed')
    .action(events);
  addCommand(snapshot, 'append <id>', {
    summary: 'Give a held snapshot more room',
    more: 'The answer to lowSpace: another place, used when those before it are full, or a higher limit. Prints the new limit.',
    examples: ['snapshot append 0b5f… --storage /mnt/spare --limit 20G', 'snapshot append 0b5f… --limit 40G'],
  })
    .option('--storage <place>', 'another place, as for `snapshot create`')
    .option('--limit <size>', 'most that may be kept there; without --storage, in all', (text: string) =>
      parseSize(text),
    )
    .action(append);
  addCommand(snapshot, 'destroy <id>', { summary: 'Let a snapshot go', examples: ['snapshot destroy 0b5f…'] }).action(
    destroy,
  );
}

/** The place as the daemon must be told it. */
export function storagePlace(given: string | undefined): string | undefined {
  return given === undefined || given === MEMORY ? given : absolute(given);
}

/** The only snapshot whose id begins so, as `0b5f` for `0b5f8c6e-…`; else what was given. */
async function fullId(client: Client, given: string): Promise<string> {
  const fitting = (await client.snapshots()).filter(({ id }) => id.startsWith(given));
  return fitting.length === 1 ? fitting[0]!.id : given;
}

async function create(names: string[], options: CreateOptions): Promise<void> {
  const client = await connect(options);
  const storage = storagePlace(options.storage);
  const hooks = hooksOf(options);
  const { limit: limitBytes, persistent, fsfreeze, dev: kernelDevice, via } = options;
  const request = { disks: names, storage, limitBytes, persistent, hooks, fsfreeze, kernelDevice, via };
  const snapshot = await client.createSnapshot(request);
  if (typeof snapshot.freeze?.thawError === 'string')
    printError(new Error(snapshot.freeze.thawError), options.json ?? false);
  if (options.json) {
    printJson(snapshot);
    return;
  }
  printLine(snapshot.id);
  for (const { uri, kernelDevice: device } of snapshot.images) {
    printLine(uri);
    if (device?.path != null) printLine(device.path);
  }
}

/** The freeze hooks as the API takes them; a time limit alone is for freezing file systems. Errors: EINVAL for one
 *  command without the other. */
export function hooksOf({ freeze, thaw, freezeTimeout: timeoutMs }: HookOptions) {
  if (freeze === undefined && thaw === undefined) return timeoutMs === undefined ? undefined : { timeoutMs };
  if (freeze === undefined || thaw === undefined) {
    throw new BlksnapError(
      'EINVAL',
      'Cannot freeze without a thaw, nor the other way round: give both --freeze and --thaw',
    );
  }
  return { freeze, thaw, timeoutMs };
}

async function list(options: CommonOptions): Promise<void> {
  const snapshots = await (await connect(options)).snapshots();
  if (options.json) {
    printJson({ snapshots });
  } else if (snapshots.length === 0) {
    printLine('No snapshots. Take one with `blksnap snapshot create NAME`.');
  } else {
    printTable<SnapshotView>(
      [
        { heading: 'ID', value: ({ id }) => id },
        { heading: 'TAKEN', value: ({ createdAt }) => formatTime(createdAt) },
        { heading: 'KEPT', value: ({ usedBytes }) => formatSize(usedBytes), right: true },
        {
          heading: 'LIMIT',
          value: ({ limitBytes }) => (limitBytes === null ? '-' : formatSize(limitBytes)),
          right: true,
        },
        {
          heading: 'DISKS',
          value: ({ images, failure }) =>
            failure !== null
              ? `refused (${failure.code})`
              : images.map(({ disk, error }) => (error === null ? disk : `${disk} (${error})`)).join(', '),
        },
      ],
      snapshots,
    );
    for (const { id, failure } of snapshots) if (failure !== null) printLine(`\n${id}: ${failure.message}`);
  }
}

async function show(given: string, options: CommonOptions): Promise<void> {
  const client = await connect(options);
  const snapshot = await client.snapshot(await fullId(client, given));
  if (options.json) {
    printJson(snapshot);
    return;
  }
  printFields([
    ['id', snapshot.id],
    ['taken', `${formatTime(snapshot.createdAt)}, writes held for ${formatSeconds(snapshot.heldMs / 1000)}`],
    ...(snapshot.freeze === null ? [] : [['frozen for', formatSeconds(snapshot.freeze.frozenMs / 1000)] as const]),
    ['storage', snapshot.places.map(({ path }) => path).join(', then ')],
    ['kept', formatSize(snapshot.usedBytes)],
    ['limit', snapshot.limitBytes === null ? 'none' : formatSize(snapshot.limitBytes)],
    ...(snapshot.persistent ? [['persistent', persistence(snapshot)] as const] : []),
    ...(snapshot.leaseMs === null
      ? []
      : [['lease', `goes ${formatSeconds(snapshot.leaseMs / 1000)} after its client`] as const]),
  ]);
  for (const image of snapshot.images) {
    printLine('');
    printFields([
      ['disk', image.disk],
      ['image', image.uri],
      ...(image.kernelDevice?.path == null ? [] : [['device', image.kernelDevice.path] as const]),
      ['size', formatSize(image.size)],
      ['generation', image.generationId],
      ['change number', String(image.changeNumber)],
      ['state', image.error === null ? 'good' : `lost (${image.error})`],
    ]);
  }
}

function persistence({ failure }: SnapshotView): string {
  return failure === null ? 'comes back with the daemon' : `refused: ${failure.message}`;
}

async function events(given: string, options: EventOptions): Promise<void> {
  const client = await connect(options);
  const id = await fullId(client, given);
  if (options.follow !== true) {
    const found = await client.events(id);
    if (options.json) printJson({ events: found });
    else for (const event of found) printLine(describeEvent(event));
    return;
  }
  const interrupt = onInterrupt();
  try {
    for await (const event of client.follow(id, { signal: interrupt.signal })) {
      printLine(options.json ? JSON.stringify(event) : describeEvent(event));
    }
  } finally {
    interrupt.release();
  }
}

function describeEvent(event: EventView): string {
  const time = formatTime(event.time);
  const limit = event.limitBytes === null ? '' : ` of ${formatSize(event.limitBytes)}`;
  switch (event.code) {
    case 'lowSpace':
      return `${time}  low space: ${formatSize(event.usedBytes)}${limit} used`;
    case 'noSpace':
      return `${time}  no space: ${formatSize(event.usedBytes)}${limit} used`;
    case 'corrupted':
      return `${time}  image of disk "${event.disk ?? ''}" lost: ${event.error ?? 'unknown'}`;
  }
}

async function append(given: string, options: CreateOptions): Promise<void> {
  const client = await connect(options);
  const id = await fullId(client, given);
  const snapshot = await client.appendStorage(id, {
    storage: storagePlace(options.storage),
    limitBytes: options.limit,
  });
  if (options.json) printJson(snapshot);
  else printLine(snapshot.limitBytes === null ? 'no limit' : formatSize(snapshot.limitBytes));
}

async function destroy(given: string, options: CommonOptions): Promise<void> {
  const client = await connect(options);
  const id = await fullId(client, given);
  await client.destroySnapshot(id);
  if (options.json) printJson({ destroyed: id });
}
