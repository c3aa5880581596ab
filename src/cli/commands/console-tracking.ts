/** cbtinfo, readcbtmap, markdirtyblock: change tracking by the verbs of the kernel module's console tool,
 *  with its flags and its output. */

import fs from 'node:fs';
import type { Command } from 'commander';
import { fileMap } from '../../block/file-map.ts';
import { BlksnapError, toBlksnapError } from '../../util/errors.ts';
import { addCommand, connect } from '../command.ts';
import type { CommonOptions } from '../command.ts';
import { diskOf, oneDevice } from '../devices.ts';
import { diskOfHolder } from '../holder.ts';
import { printJson, printLine } from '../output.ts';

const SECTOR = 512;
const DEVICE = '-d, --device <device...>';
const DEVICE_TEXT = 'a disk, by name or path';

interface DeviceOptions extends CommonOptions {
  readonly device?: readonly string[];
}

interface FileOptions extends DeviceOptions {
  readonly file?: string;
}

interface MarkOptions extends FileOptions {
  readonly ranges?: readonly string[];
}

interface Range {
  readonly offset: number;
  readonly length: number;
}

export function addConsoleTrackingCommands(program: Command): void {
  addCommand(program, 'cbtinfo', {
    summary: "Print where a disk's change tracking stands, for scripts",
    examples: ['cbtinfo --device /dev/vdb'],
  })
    .requiredOption(DEVICE, DEVICE_TEXT)
    .action(cbtInfo);
  addCommand(program, 'readcbtmap', {
    summary: "Write a disk's change map to a file",
    more: 'One byte per tracking block; while a snapshot is held, as of the newest take.',
    examples: ['readcbtmap --device vm --file vm.map'],
  })
    .requiredOption(DEVICE, DEVICE_TEXT)
    .requiredOption('-f, --file <path>', 'where to')
    .action(readMap);
  addCommand(program, 'markdirtyblock', {
    summary: 'Mark ranges of a disk, or the blocks of a file on it, as changed',
    examples: ['markdirtyblock --device vm --ranges 0:8 2048:16', 'markdirtyblock --file /mnt/database'],
  })
    .option(DEVICE, DEVICE_TEXT)
    .option('-r, --ranges <sector:count...>', 'ranges, in sectors of 512 bytes')
    .option('-f, --file <path>', 'a file: its extents on its device')
    .action(mark);
}

async function cbtInfo(options: DeviceOptions): Promise<void> {
  const client = await connect(options);
  const { name } = await diskOf(client, oneDevice(options.device));
  const info = await client.cbt(name);
  const fields = {
    block_size: info.blockSize,
    device_capacity: info.size,
    block_count: info.blockCount,
    generation_id: info.generationId,
    changes_number: info.changeNumber,
  };
  if (options.json) printJson(fields);
  else for (const [field, value] of Object.entries(fields)) printLine(`${field}=${value}`);
}

async function readMap(options: FileOptions & { readonly file: string }): Promise<void> {
  const client = await connect(options);
  const { name } = await diskOf(client, oneDevice(options.device));
  const map = await client.cbtMap(name);
  try {
    fs.writeFileSync(options.file, map);
  } catch (cause) {
    throw toBlksnapError(cause, 'Cannot write the change map');
  }
  if (options.json) printJson({ file: options.file, bytes: map.length });
}

async function mark(options: MarkOptions): Promise<void> {
  const { ranges: given, file, device } = options;
  if ((given === undefined) === (file === undefined)) {
    throw new BlksnapError('EINVAL', 'Cannot mark blocks: want either --ranges or --file');
  }
  const client = await connect(options);
  const named = file !== undefined && device === undefined ? null : await diskOf(client, oneDevice(device));
  const { name, ranges } =
    file === undefined
      ? { name: named!.name, ranges: given!.map(parseRange) }
      : await fileRanges(file, async (map) => diskOfHolder(map, await client.disks(), named));
  if (ranges.length > 0) await client.markDirty(name, { ranges: [...ranges] });
  if (options.json) printJson({ disk: name, ranges });
}

async function fileRanges(
  file: string,
  find: (map: { major: number; minor: number }) => Promise<{ disk: { name: string }; offset: number }>,
): Promise<{ name: string; ranges: readonly Range[] }> {
  const map = fileMap(file);
  const { disk, offset } = await find(map);
  return { name: disk.name, ranges: map.runs.map((run) => ({ offset: run.offset + offset, length: run.length })) };
}

function parseRange(text: string): Range {
  const match = /^(\d+):(\d+)$/.exec(text);
  const [sector, count] = [Number(match?.[1]), Number(match?.[2])];
  if (match === null || count === 0 || !Number.isSafeInteger((sector + count) * SECTOR)) {
    throw new BlksnapError(
      'EINVAL',
      `Cannot read range "${text}": want SECTOR:COUNT, both whole numbers, at least one sector`,
    );
  }
  return { offset: sector * SECTOR, length: count * SECTOR };
}
