/** snapshot_create and the rest: snapshots in steps, by the verbs of the kernel module's console tool,
 *  with its flags and its output. An image that has no kernel device is named by its NBD URI. */

import type { Command } from 'commander';
import type { Client, EventView } from '../../api/client.ts';
import { BlksnapError, ERRNO } from '../../util/errors.ts';
import { parseSize } from '../../util/units.ts';
import { addCommand, connect } from '../command.ts';
import type { CommonOptions } from '../command.ts';
import { diskOf, ensureAttached, oneDevice } from '../devices.ts';
import { onInterrupt } from '../interrupt.ts';
import { printJson, printLine } from '../output.ts';
import { storagePlace } from './snapshots.ts';

interface IdOptions extends CommonOptions {
  readonly id: string;
}

interface CreateOptions extends CommonOptions {
  readonly device?: readonly string[];
  readonly file?: string;
  readonly limit?: number;
}

interface AddOptions extends IdOptions {
  readonly device: readonly string[];
}

interface InfoOptions extends CommonOptions {
  readonly device: readonly string[];
  readonly field?: string;
}

interface WaitOptions extends IdOptions {
  readonly timeout: string;
}

/** Longest wait that the API takes at a time. */
const WAIT_MS = 60_000;
const SECTOR = 512;
const DEVICE = '-d, --device <device...>';
const DEVICE_TEXT = 'disks, by name or path';
const EVENT_NAMES = { lowSpace: 'low_free_space', noSpace: 'no_space', corrupted: 'corrupted' } as const;

export function addConsoleSnapshotCommands(program: Command): void {
  const withId = (
    usage: string,
    summary: string,
    { more, rest = '' }: { more?: string; rest?: string } = {},
  ): Command =>
    addCommand(program, usage, {
      summary,
      ...(more === undefined ? {} : { more }),
      examples: [`${usage} --id 0b5f8c6e-…${rest}`],
    }).requiredOption('-i, --id <id>', "the snapshot's id");

  addCommand(program, 'snapshot_create', {
    summary: 'Prepare a snapshot, and print its id',
    more: 'Disks that are not attached are. Nothing is frozen before `snapshot_take`.',
    examples: ['snapshot_create --device /dev/vdb /dev/vdc --file /var/tmp --limit 10G'],
  })
    .option(DEVICE, DEVICE_TEXT)
    .option(
      '-f, --file <place>',
      'where overwritten data goes: a directory, a new or unused file, a block device, or :memory:',
    )
    .option('-l, --limit <size>', 'most that may be kept there', (text: string) => parseSize(text))
    .action(create);
  withId('snapshot_add', 'Add disks to a snapshot that is not taken yet', {
    more: 'Disks that are not attached are.',
    rest: ' --device /dev/vdd',
  })
    .requiredOption(DEVICE, DEVICE_TEXT)
    .action(add);
  withId('snapshot_take', 'Freeze the disks of a prepared snapshot at one instant').action(take);
  withId('snapshot_destroy', 'Let a snapshot go, taken or not').action(destroy);
  addCommand(program, 'snapshot_collect', {
    summary: 'Print the ids of all snapshots',
    examples: ['snapshot_collect'],
  }).action(collect);
  addCommand(program, 'snapshot_info', {
    summary: "Print the state of a disk's newest snapshot",
    more: 'The image is empty before the take.',
    examples: ['snapshot_info --device vm', 'snapshot_info --device vm --field image'],
  })
    .requiredOption(DEVICE, DEVICE_TEXT)
    .option('-f, --field <name>', 'this field alone: image or error_code')
    .action(info);
  withId('snapshot_waitevent', "Wait for a snapshot's next event, and take it out of the queue", {
    rest: ' --timeout 10000',
  })
    .requiredOption('-t, --timeout <ms>', 'how long')
    .action(waitEvent);
  withId('snapshot_watcher', 'Print the events of a snapshot until it is damaged or gone').action(watch);
}

async function create(options: CreateOptions): Promise<void> {
  const client = await connect(options);
  const disks: string[] = [];
  for (const device of options.device ?? []) disks.push((await ensureAttached(client, device)).disk.name);
  const prepared = await client.prepareSnapshot({
    disks,
    storage: storagePlace(options.file),
    limitBytes: options.limit,
  });
  if (options.json) printJson(prepared);
  else printLine(prepared.id);
}

async function add(options: AddOptions): Promise<void> {
  const client = await connect(options);
  for (const device of options.device) {
    const { disk } = await ensureAttached(client, device);
    await client.addToSnapshot(options.id, disk.name);
  }
  if (options.json) printJson((await client.preparedSnapshots()).find(({ id }) => id === options.id));
}

async function take(options: IdOptions): Promise<void> {
  const snapshot = await (await connect(options)).takeSnapshot(options.id);
  if (options.json) printJson(snapshot);
}

async function destroy(options: IdOptions): Promise<void> {
  const client = await connect(options);
  const prepared = (await client.preparedSnapshots()).some(({ id }) => id === options.id);
  if (prepared) await client.forgetSnapshot(options.id);
  else await client.destroySnapshot(options.id);
  if (options.json) printJson({ destroyed: options.id });
}

async function collect(options: CommonOptions): Promise<void> {
  const client = await connect(options);
  const all = [...(await client.snapshots()), ...(await client.preparedSnapshots())];
  const ids = all.map(({ id }) => id);
  if (options.json) printJson({ ids });
  else for (const id of ids) printLine(id);
}

async function info(options: InfoOptions): Promise<void> {
  const client = await connect(options);
  const { name } = await diskOf(client, oneDevice(options.device));
  const fields = await newestOf(client, name);
  if (options.field !== undefined && !(options.field in fields)) {
    throw new BlksnapError('EINVAL', `Cannot print field "${options.field}": want image or error_code`);
  }
  if (options.json) printJson(fields);
  else if (options.field !== undefined) printLine(String(fields[options.field as keyof typeof fields]));
  else for (const [field, value] of Object.entries(fields)) printLine(`${field}=${value}`);
}

/** Of the snapshot of the disk that was asked for last. `error_code` is 0 or a negative error number. */
async function newestOf(client: Client, disk: string): Promise<{ error_code: number; image: string }> {
  const prepared = (await client.preparedSnapshots()).findLast(({ disks }) => disks.includes(disk));
  const taken = (await client.snapshots()).findLast(({ images }) => images.some((image) => image.disk === disk));
  if (prepared !== undefined && (taken === undefined || taken.createdAt < prepared.createdAt))
    return { error_code: 0, image: '' };
  const image = taken?.images.find((one) => one.disk === disk);
  if (image === undefined) throw new BlksnapError('ENOENT', `Disk "${disk}" is in no snapshot`);
  return { error_code: image.error === null ? 0 : -ERRNO[image.error], image: image.kernelDevice?.path ?? image.uri };
}

async function waitEvent(options: WaitOptions): Promise<void> {
  const timeoutMs = Number(options.timeout);
  if (!Number.isSafeInteger(timeoutMs) || timeoutMs < 0) {
    throw new BlksnapError('EINVAL', `Cannot wait "${options.timeout}": want a number of milliseconds`);
  }
  const interrupt = onInterrupt();
  try {
    const client = await connect(options);
    const event = await nextEvent(client, options.id, { timeoutMs, signal: interrupt.signal });
    if (event === null) printResult('timeout', options);
    else if (options.json) printJson({ result: 'ok', event });
    else for (const line of ['result=ok', ...eventLines(event)]) printLine(line);
  } catch (cause) {
    const code = cause instanceof BlksnapError ? cause.code : null;
    if (code === 'ECANCELED') printResult('interrupted', options);
    else if (code === 'ESRCH') printResult('not found', options);
    else throw cause;
  } finally {
    interrupt.release();
  }
}

function printResult(result: string, { json }: CommonOptions): void {
  if (json) printJson({ result });
  else printLine(`result=${result}`);
}

async function nextEvent(
  client: Client,
  id: string,
  { timeoutMs, signal }: { readonly timeoutMs: number; readonly signal: AbortSignal },
): Promise<EventView | null> {
  const untilMs = performance.now() + timeoutMs;
  for (;;) {
    const leftMs = Math.max(0, Math.ceil(untilMs - performance.now()));
    const event = await client.nextEvent(id, { timeoutMs: Math.min(leftMs, WAIT_MS), signal });
    if (event !== null || leftMs <= WAIT_MS) return event;
  }
}

/** The time in nanoseconds since 1970, as the module's numbers are. */
function eventLines(event: EventView): string[] {
  const lines = [`time=${BigInt(Date.parse(event.time)) * 1_000_000n}`, `event=${EVENT_NAMES[event.code]}`];
  if (event.requestedBytes !== null) lines.push(`requested_nr_sect=${event.requestedBytes / SECTOR}`);
  if (event.disk !== null) lines.push(`device=${event.disk}`);
  if (event.error !== null) lines.push(`error=${-ERRNO[event.error]}`);
  return lines;
}

async function watch(options: IdOptions): Promise<void> {
  const client = await connect(options);
  const interrupt = onInterrupt();
  let after = 0;
  try {
    // The first question tells whether there is such a snapshot at all.
    for (let timeoutMs = 0; ; timeoutMs = WAIT_MS) {
      const known = timeoutMs > 0;
      const events = await client
        .events(options.id, { after, timeoutMs, signal: interrupt.signal })
        .catch((cause: unknown) => {
          if (known && cause instanceof BlksnapError && cause.code === 'ESRCH') return null;
          throw cause;
        });
      if (events === null) return;
      for (const event of events) {
        after = event.sequence;
        if (options.json) printLine(JSON.stringify(event));
        else printLine(eventLines(event).join(' '));
        if (event.code === 'corrupted')
          throw new BlksnapError('EIO', `Snapshot "${options.id}" is damaged: image of disk "${event.disk}" lost`);
      }
    }
  } finally {
    interrupt.release();
  }
}
