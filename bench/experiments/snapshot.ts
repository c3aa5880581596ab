/** What a held snapshot costs writes to the origin, and how fast its image is read. */

import type { FioJob } from '../fio.ts';
import type { Experiment } from '../measurement.ts';
import { NBDKIT_COW, NBDKIT_FILE, QEMU_CBW, QEMU_STORAGE_DAEMON, tracked } from '../servers.ts';
import type { RunningServer } from '../servers.ts';
import { fioEntrant, overwrite } from './fio-entrant.ts';
import type { FioEntrantOptions } from './fio-entrant.ts';

const KIB = 1024;
const MIB = 1024 * 1024;

const NONE = tracked('blksnap-tracker', 'blksnap, no snapshot');
const HELD = tracked('blksnap-held', 'blksnap, held, first touch', { held: true });
const HELD_IN_MEMORY = tracked('blksnap-held-memory', 'blksnap, held in memory, first touch', { held: 'in memory' });
const COPIED = tracked('blksnap-copied', 'blksnap, held, already copied', { held: true });
const PORTABLE_HELD = { held: true, driver: 'portable' } as const;
const HELD_PORTABLE = tracked('blksnap-held-portable', 'blksnap, held, first touch, portable', PORTABLE_HELD);
const COPIED_PORTABLE = tracked('blksnap-copied-portable', 'blksnap, held, already copied, portable', PORTABLE_HELD);

function firstTouch(
  name: string,
  title: string,
  { job, unit, quick }: { readonly job: FioJob; readonly unit: 'IOPS' | 'MiB/s'; readonly quick: boolean },
): Experiment {
  const options = { job, unit };
  const copied: FioEntrantOptions = { ...options, prepare: ({ uri }, stage) => overwrite(uri, stage) };
  return {
    name,
    title,
    group: 'first-touch',
    unit,
    better: 'more',
    place: 'memory',
    quick,
    entrants: [
      fioEntrant(NONE, options),
      fioEntrant(HELD, options),
      fioEntrant(HELD_IN_MEMORY, options),
      // Where the writes lie makes no difference to what is copied already.
      ...(job.skipBytes === undefined ? [COPIED, COPIED_PORTABLE] : []).map((row) => fioEntrant(row, copied)),
      fioEntrant(HELD_PORTABLE, options),
      ...[QEMU_STORAGE_DAEMON, ...QEMU_CBW, NBDKIT_FILE, NBDKIT_COW].map((row) => fioEntrant(row, options)),
    ],
  };
}

const writes = (queueDepth: number): FioJob => ({ rw: 'randwrite', blockBytes: 4 * KIB, queueDepth, onePass: true });

export const FIRST_TOUCH: readonly Experiment[] = [
  firstTouch('first-touch-4k-qd1', '4 KiB random writes, each block once, queue depth 1', {
    job: writes(1),
    unit: 'IOPS',
    quick: false,
  }),
  firstTouch('first-touch-4k-qd32', '4 KiB random writes, each block once, queue depth 32', {
    job: writes(32),
    unit: 'IOPS',
    quick: true,
  }),
  firstTouch('first-touch-4k-apart-qd1', '4 KiB writes, one in each 64 KiB, queue depth 1', {
    job: { rw: 'write', blockBytes: 4 * KIB, skipBytes: 60 * KIB, queueDepth: 1, onePass: true },
    unit: 'IOPS',
    quick: false,
  }),
  firstTouch('first-touch-4k-apart-qd32', '4 KiB writes, one in each 64 KiB, queue depth 32', {
    job: { rw: 'write', blockBytes: 4 * KIB, skipBytes: 60 * KIB, queueDepth: 32, onePass: true },
    unit: 'IOPS',
    quick: false,
  }),
  firstTouch('first-touch-1m-qd4', '1 MiB sequential writes, each block once, queue depth 4', {
    job: { rw: 'write', blockBytes: MIB, queueDepth: 4, onePass: true },
    unit: 'MiB/s',
    quick: true,
  }),
];

const image = (server: RunningServer): string => server.imageUri!;
const IMAGE_DRIVERS = [
  { driver: 'uring', suffix: '', words: '' },
  { driver: 'portable', suffix: '-portable', words: ', portable' },
] as const;

function imageReads(name: string, title: string, options: FioEntrantOptions & { readonly quick: boolean }): Experiment {
  const { job, unit, quick } = options;
  const none: FioEntrantOptions = { job, unit, uriOf: image };
  const half: FioEntrantOptions = { ...none, prepare: ({ uri }, stage) => overwrite(uri, stage, 64 * KIB) };
  const all: FioEntrantOptions = { ...none, prepare: ({ uri }, stage) => overwrite(uri, stage) };
  return {
    name,
    title,
    group: 'image',
    unit,
    better: 'more',
    place: 'memory',
    quick,
    entrants: [
      fioEntrant(tracked('origin', 'blksnap, origin', { held: true }), { job, unit }),
      ...IMAGE_DRIVERS.flatMap(({ driver, suffix, words }) => {
        const held = (copied: string, what: string): ReturnType<typeof tracked> =>
          tracked(`image-${copied}${suffix}`, `blksnap, image, ${what}${words}`, { held: true, driver });
        return [
          fioEntrant(held('none', 'nothing copied'), none),
          fioEntrant(held('half', 'half copied'), half),
          fioEntrant(held('all', 'all copied'), all),
        ];
      }),
      fioEntrant(QEMU_CBW[0], none),
    ],
  };
}

export const IMAGES: readonly Experiment[] = [
  imageReads('image-4k-qd32', '4 KiB random reads of the image, queue depth 32', {
    job: { rw: 'randread', blockBytes: 4 * KIB, queueDepth: 32, onePass: false },
    unit: 'IOPS',
    quick: true,
  }),
  imageReads('image-1m-qd4', '1 MiB sequential reads of the image, queue depth 4', {
    job: { rw: 'read', blockBytes: MIB, queueDepth: 4, onePass: false },
    unit: 'MiB/s',
    quick: false,
  }),
];
