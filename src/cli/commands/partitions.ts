/** rescan: what partitions a disk has. */

import type { Command } from 'commander';
import type { DiskView } from '../../api/client.ts';
import { formatSize } from '../../util/units.ts';
import { addCommand, connect } from '../command.ts';
import type { CommonOptions } from '../command.ts';
import { printJson, printLine, printTable } from '../output.ts';

export function addPartitionCommands(program: Command): void {
  addCommand(program, 'rescan <name>', {
    summary: "Read a disk's partition table anew, and list its partitions",
    more: 'Partitions are disks of their own, NAME/1 and so on. The table is read when a disk is attached; after it was changed, this takes the change over.',
    examples: ['rescan vm'],
  }).action(rescan);
}

async function rescan(name: string, options: CommonOptions): Promise<void> {
  const disks = await (await connect(options)).rescan(name);
  if (options.json) {
    printJson({ disks });
    return;
  }
  const [whole, ...partitions] = disks;
  for (const warning of whole?.partitionTable?.warnings ?? []) process.stderr.write(`blksnap: ${name}: ${warning}\n`);
  if (partitions.length === 0) printLine(`Disk "${name}" has no partitions.`);
  else printPartitions(partitions);
}

function printPartitions(partitions: readonly DiskView[]): void {
  printTable<DiskView>(
    [
      { heading: 'NAME', value: (disk) => disk.name },
      { heading: 'START', value: ({ partition }) => String(partition!.offset), right: true },
      { heading: 'SIZE', value: ({ size }) => formatSize(size), right: true },
      { heading: 'TYPE', value: ({ partition }) => partition!.type },
      { heading: 'LABEL', value: ({ partition }) => partition!.label },
      { heading: 'URI', value: ({ uri }) => uri },
    ],
    partitions,
  );
}
