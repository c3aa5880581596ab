/** Writes the qcow2 file of a restore point from a device, whole and synced, with its sums beside it. */

import fs from 'node:fs';
import type { BlockDevice } from '../block/device.ts';
import { Qcow2Writer } from '../qcow2/writer.ts';
import { copyRanges } from './copy.ts';
import type { CopyContext, CopyProgress } from './copy.ts';
import type { PointContent } from './manifest.ts';
import { DoneRanges } from './done-ranges.ts';
import { alignOut, gapsBetween } from './ranges.ts';
import type { ByteRange } from './ranges.ts';
import { pointFileName } from './repository.ts';
import { writeSums } from './sums.ts';

/** QEMU's default. The unit of what is stored; no larger than the smallest tracking block. */
const CLUSTER_BITS = 16;

export interface PointFileOptions {
  readonly diskPath: string;
  readonly id: string;
  /** Where to write: a name that no manifest tells of yet. */
  readonly file: string;
  /** The point that the file is backed by; null for a full. */
  readonly parent: string | null;
  /** What to store of the device; with a parent, everything else is the parent's. */
  readonly ranges: readonly ByteRange[];
}

/** Leaves nothing behind when it fails. */
export async function writePointFile(
  from: BlockDevice,
  options: PointFileOptions,
  context: CopyContext,
): Promise<{ content: Omit<PointContent, 'kind'>; progress: CopyProgress }> {
  const granule = 2 ** CLUSTER_BITS;
  const writer = await Qcow2Writer.create(options.file, {
    reactor: context.reactor,
    size: from.size,
    clusterBits: CLUSTER_BITS,
    ...(options.parent === null ? {} : { backing: { name: pointFileName(options.parent), format: 'qcow2' } }),
  });
  try {
    const ranges = alignOut(options.ranges, granule, from.size);
    const done = context.onDone === undefined ? null : new DoneRanges(context.onDone, from.size);
    await done?.start(gapsBetween(ranges, from.size));
    const onDone = done === null ? undefined : (range: ByteRange) => done.add(range);
    const progress = await copyRanges(from, writer, { ...context, onDone, ranges, granule });
    const { fileBytes, dataBytes, checksums } = await writer.finish();
    const sums = writeSums(options.diskPath, options.id, { fileBytes, ...checksums });
    return { content: { parent: options.parent, bytesStored: dataBytes, fileBytes, sums }, progress };
  } catch (cause) {
    await writer.abort();
    fs.rmSync(options.file, { force: true });
    throw cause;
  }
}
