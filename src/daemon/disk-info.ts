/** What an I/O thread tells of a disk or partition. */

import type { Tracker } from '../blksnap/tracker.ts';
import type { Disk } from '../block/disk.ts';
import type { CbtInfo, DiskInfo, PartitionTableInfo } from './io-protocol.ts';
import type { PartitionDisk } from './partition-disks.ts';
import { partitionCbt } from './partition-views.ts';

interface TrackedDisk {
  readonly disk: Disk;
  readonly tracker: Tracker;
}

export function diskInfo({ disk, tracker }: TrackedDisk, partitionTable: PartitionTableInfo): DiskInfo {
  return {
    name: disk.name,
    size: disk.size,
    logicalBlockSize: disk.logicalBlockSize,
    physicalBlockSize: disk.physicalBlockSize,
    readOnly: disk.readOnly,
    filters: disk.filters.map(({ name }) => name),
    inFlight: disk.inFlight,
    cbt: cbtInfo(tracker),
    copies: { ...tracker.cow.counters },
    partition: null,
    partitionTable,
  };
}

export function partitionInfo({ disk: whole, tracker }: TrackedDisk, { disk, partition }: PartitionDisk): DiskInfo {
  const { number, offset, type, label } = partition;
  return {
    ...diskInfo({ disk, tracker }, { scheme: null, warnings: [] }),
    cbt: partitionCbt(cbtInfo(tracker), partition),
    copies: null,
    partition: { disk: whole.name, number, offset, type, label },
    partitionTable: null,
  };
}

function cbtInfo({ cbt }: Tracker): CbtInfo {
  const { deviceSize: size, blockSize, blockCount, generationId, changeNumber, reason } = cbt;
  return { size, blockSize, blockCount, generationId, changeNumber, reason };
}
