/** A partition's changes and images, as views of its disk's.
 *
 *  Nothing is tracked twice: a block of the partition has changed when a tracking block of the disk that it touches
 *  has. Its generation id is a hash of the disk's and of its place, so that a partition that lies elsewhere than
 *  before has another history, and its next backup is full. */

import crypto from 'node:crypto';
import type { ByteRange } from '../backup/ranges.ts';
import type { SnapshotImage } from '../blksnap/image.ts';
import type { Tracker } from '../blksnap/tracker.ts';
import type { DeviceRange } from '../block/range-device.ts';
import { BlksnapError } from '../util/errors.ts';
import type { ImageHistory } from './image-contexts.ts';
import type { CbtInfo } from './io-protocol.ts';

/** A UUID (version 8: made in a way of our own). */
export function partitionGeneration(generationId: string, { offset, length }: DeviceRange): string {
  const hash = crypto.createHash('sha256').update(`${generationId} ${offset} ${length}`).digest('hex');
  const variant = '89ab'[Number.parseInt(hash[16]!, 16) % 4]!;
  return `${hash.slice(0, 8)}-${hash.slice(8, 12)}-8${hash.slice(13, 16)}-${variant}${hash.slice(17, 20)}-${hash.slice(20, 32)}`;
}

export function partitionCbt(cbt: CbtInfo, range: DeviceRange): CbtInfo {
  return {
    ...cbt,
    size: range.length,
    blockCount: Math.ceil(range.length / cbt.blockSize),
    generationId: partitionGeneration(cbt.generationId, range),
  };
}

/** The map of a partition from that of its disk. The blocks of the two need not lie on each other: of two disk blocks
 *  that one of the partition touches, the later change counts. */
function partitionMap(map: Uint8Array, blockSize: number, { offset, length }: DeviceRange): Uint8Array {
  const view = new Uint8Array(Math.ceil(length / blockSize));
  for (let block = 0; block < view.length; block++) {
    const from = offset + block * blockSize;
    const last = offset + Math.min((block + 1) * blockSize, length) - 1;
    view[block] = Math.max(map[Math.floor(from / blockSize)]!, map[Math.floor(last / blockSize)]!);
  }
  return view;
}

/** What an image of the disk tells of the partition's changes. */
export function partitionHistory(image: SnapshotImage, range: DeviceRange): ImageHistory {
  return {
    generationId: partitionGeneration(image.generationId, range),
    changeNumber: image.changeNumber,
    changedSince: (number, offset, length) => image.changedSince(number, range.offset + offset, length),
  };
}

/** Part of the change map of a disk, or of a partition of it; while a snapshot is held, as of the newest take, unless a new
 *  history has begun since. Errors: EINVAL. */
export function cbtMapPart(
  { cbt, cow }: Pick<Tracker, 'cbt' | 'cow'>,
  partition: DeviceRange | null,
  { offset, length }: ByteRange,
): Uint8Array {
  const newest = cow.areas.all.findLast((area) => area.alive);
  const whole = newest?.generationId === cbt.generationId ? newest.frozenMap : cbt.map;
  const map = partition === null ? whole : partitionMap(whole, cbt.blockSize, partition);
  if (offset > map.length) {
    throw new BlksnapError('EINVAL', `Cannot read the change map at ${offset}: it has ${map.length} bytes`);
  }
  return map.slice(offset, offset + length);
}

/** Ranges of a disk or partition as ranges of the disk. Errors: EINVAL. */
export function rangesOnDisk(
  ranges: readonly ByteRange[],
  name: string,
  partition: DeviceRange | null,
): readonly ByteRange[] {
  if (partition === null) return ranges;
  const outside = ranges.find(({ offset, length }) => offset + length > partition.length);
  if (outside !== undefined) {
    throw new BlksnapError(
      'EINVAL',
      `Cannot mark ${outside.length} bytes at ${outside.offset} of "${name}": its size is ${partition.length}`,
    );
  }
  return ranges.map(({ offset, length }) => ({ offset: partition.offset + offset, length }));
}
