/** What is measured of a block device: jobs of fio, each in a state of the device. A new one is a row. */

import type { FioJob } from '../fio.ts';

const KIB = 1024;
const MIB = 1024 * KIB;

/** `plain`: no snapshot. `held`: one was just taken, so that every write is the first to its place. `copied`: all is saved.
 *  `image`: the image is read, just taken; `image-copied`: when all is saved. */
export type State = 'plain' | 'held' | 'copied' | 'image' | 'image-copied';

export interface Workload {
  readonly name: string;
  readonly unit: 'IOPS' | 'MiB/s';
  readonly job: FioJob;
  /** The first is what the others are compared with. */
  readonly states: readonly State[];
}

const read = (queueDepth: number): FioJob => ({ rw: 'randread', blockBytes: 4 * KIB, queueDepth, onePass: false });
const write = (queueDepth: number): FioJob => ({ rw: 'randwrite', blockBytes: 4 * KIB, queueDepth, onePass: true });
/** Overwrites everything, in order. */
export const OVERWRITE: FioJob = { rw: 'write', blockBytes: MIB, queueDepth: 4, onePass: true };

export const WORKLOADS: readonly Workload[] = [
  { name: '4 KiB random reads, QD 1', unit: 'IOPS', job: read(1), states: ['plain'] },
  { name: '4 KiB random reads, QD 32', unit: 'IOPS', job: read(32), states: ['plain', 'image', 'image-copied'] },
  { name: '4 KiB random writes, QD 1', unit: 'IOPS', job: write(1), states: ['plain', 'held', 'copied'] },
  { name: '4 KiB random writes, QD 32', unit: 'IOPS', job: write(32), states: ['plain', 'held', 'copied'] },
  { name: '1 MiB writes in order, QD 4', unit: 'MiB/s', job: OVERWRITE, states: ['plain', 'held', 'copied'] },
];
