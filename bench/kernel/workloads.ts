/** What is measured of a block device: jobs of fio, each in a state of the device. A new one is a row. */

import type { FioJob } from '../fio.ts';

const KIB = 1024;
const MIB = 1024 * KIB;

/** `plain`: no snapshot; of ours with its tracker, which every disk has. `held`: one was just taken, so that every write is
 *  the first to its place. `copied`: all is saved. `image`: the image is read, just taken; `image-copied`: when all is
 *  saved. */
export type State = 'plain' | 'held' | 'copied' | 'image' | 'image-copied';

export interface Workload {
  readonly name: string;
  readonly unit: 'IOPS' | 'MiB/s';
  readonly job: FioJob;
  /** The first is what the others are compared with. */
  readonly states: readonly State[];
  /** What the documents of the kernel's blksnap, which is not measured here, say of it. */
  readonly published: Partial<Record<State, string>>;
  /** Measured where every instruction is emulated, too. */
  readonly emulated: boolean;
}

const read = (queueDepth: number): FioJob => ({ rw: 'randread', blockBytes: 4 * KIB, queueDepth, onePass: false });
const write = (queueDepth: number): FioJob => ({ rw: 'randwrite', blockBytes: 4 * KIB, queueDepth, onePass: true });
const overwrite: FioJob = { rw: 'write', blockBytes: MIB, queueDepth: 4, onePass: true };

const TRACKER = 'a byte in memory is marked';
const COPIED = 'nothing is copied again';
const ONE_BLOCK = {
  plain: TRACKER,
  held: 'the write waits until 256 KiB or more were read, 64 times its length, not until they are stored',
  copied: COPIED,
};
const WHOLE_CHUNKS = { ...ONE_BLOCK, held: 'the write waits until as much was read, not until it is stored' };
const IMAGE = { image: 'read from the disk', 'image-copied': 'read from the storage' };

export const WORKLOADS: readonly Workload[] = [
  {
    name: '4 KiB random reads, QD 1',
    unit: 'IOPS',
    job: read(1),
    states: ['plain'],
    published: {},
    emulated: false,
  },
  {
    name: '4 KiB random reads, QD 32',
    unit: 'IOPS',
    job: read(32),
    states: ['plain', 'image', 'image-copied'],
    published: IMAGE,
    emulated: false,
  },
  {
    name: '4 KiB random writes, QD 1',
    unit: 'IOPS',
    job: write(1),
    states: ['plain', 'held', 'copied'],
    published: ONE_BLOCK,
    emulated: false,
  },
  {
    name: '4 KiB random writes, QD 32',
    unit: 'IOPS',
    job: write(32),
    states: ['plain', 'held', 'copied'],
    published: ONE_BLOCK,
    emulated: true,
  },
  {
    name: '1 MiB writes in order, QD 4',
    unit: 'MiB/s',
    job: overwrite,
    states: ['plain', 'held', 'copied'],
    published: WHOLE_CHUNKS,
    emulated: true,
  },
];
