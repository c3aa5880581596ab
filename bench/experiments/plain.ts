/** Plain I/O: every server over the same file, without and with the tracker, and the machine's limit. */

import { runFio } from '../fio.ts';
import type { FioJob } from '../fio.ts';
import type { Entrant, Experiment, PlaceName } from '../measurement.ts';
import { NOTHING, PEERS, served, tracked } from '../servers.ts';
import { fioEntrant, measuredRange } from './fio-entrant.ts';

const KIB = 1024;
const MIB = 1024 * 1024;

interface Workload {
  readonly name: string;
  readonly title: string;
  readonly unit: 'IOPS' | 'MiB/s';
  readonly job: FioJob;
}

const RANDOM = [
  ['randread', 'random reads'],
  ['randwrite', 'random writes'],
  ['randrw', 'random reads and writes, 70/30'],
] as const;

const WORKLOADS: readonly Workload[] = [
  ...RANDOM.flatMap(([rw, words]) =>
    [1, 32, 128].map((queueDepth) => ({
      name: `${rw}-4k-qd${queueDepth}`,
      title: `4 KiB ${words}, queue depth ${queueDepth}`,
      unit: 'IOPS' as const,
      job: { rw, blockBytes: 4 * KIB, queueDepth, onePass: false },
    })),
  ),
  ...(['read', 'write'] as const).map((rw) => ({
    name: `${rw}-1m-qd4`,
    title: `1 MiB sequential ${rw}s, queue depth 4`,
    unit: 'MiB/s' as const,
    job: { rw, blockBytes: MIB, queueDepth: 4, onePass: false },
  })),
];

const QUICK = new Set(['randread-4k-qd1', 'randread-4k-qd32', 'randwrite-4k-qd1', 'randwrite-4k-qd32']);

const OURS = [
  served('blksnap-serve', 'blksnap', 'uring'),
  tracked('blksnap-tracker', 'blksnap, tracker attached'),
  served('blksnap-portable', 'blksnap, portable driver', 'portable'),
];

const TRACKED_PORTABLE = tracked('blksnap-tracker-portable', 'blksnap, tracker attached, portable driver', {
  driver: 'portable',
});
const DEEP = 32;

/** fio on the file itself: no server, no socket. */
function fileLimit(engine: 'io_uring' | 'sync', { job, unit }: Workload): Entrant {
  return {
    name: `file-${engine}`,
    title: `limit: fio on the file, ${engine}`,
    needs: ['fio'],
    measure: async (stage) => {
      const target = { file: stage.disk, engine };
      const result = await runFio(job, { target, range: measuredRange(stage), runMs: stage.settings.runMs });
      const value = unit === 'IOPS' ? result.iops : result.mibPerSecond;
      return { value, p50Us: result.p50Us, p99Us: result.p99Us };
    },
  };
}

/** The copy that no server can avoid, from memory that is not in the processor's caches. */
const MEMORY_COPY: Entrant = {
  name: 'memory-copy',
  title: 'limit: a memory copy',
  needs: [],
  measure: async ({ settings }) => {
    const [from, to] = [Buffer.alloc(256 * MIB, 1), Buffer.alloc(MIB)];
    const began = performance.now();
    let copied = 0;
    for (; performance.now() - began < settings.runMs / 2; copied += MIB) {
      from.copy(to, 0, copied % from.length, (copied % from.length) + MIB);
    }
    return { value: copied / MIB / ((performance.now() - began) / 1000) };
  },
};

function limits(workload: Workload): Entrant[] {
  const uring = fileLimit('io_uring', workload);
  const sync = fileLimit('sync', workload);
  if (workload.unit === 'MiB/s') return [uring, sync, MEMORY_COPY];
  // One call after the other knows no depth.
  return workload.job.queueDepth === 1 ? [uring, sync] : [uring];
}

function plainExperiment(workload: Workload, place: PlaceName, connections: number): Experiment {
  const { job, unit } = workload;
  const servers = [...OURS, ...(place === 'memory' && connections === 1 ? [TRACKED_PORTABLE] : []), ...PEERS];
  // Where the queue is short, the client does not limit anybody.
  if (job.queueDepth >= DEEP) servers.push(NOTHING);
  const suffix = `${place === 'disk' ? '-disk' : ''}${connections > 1 ? `-${connections}c` : ''}`;
  const several = connections > 1 ? `, on each of ${connections} connections` : '';
  return {
    name: `${workload.name}${suffix}`,
    title: `${workload.title}${several}, file ${place === 'disk' ? 'on disk' : 'in memory'}`,
    group: place === 'disk' ? 'plain-disk' : 'plain',
    unit,
    better: 'more',
    place,
    quick: suffix === '' && QUICK.has(workload.name),
    entrants: [
      ...servers.map((row) => fioEntrant(row, { job, unit, connections })),
      ...(connections === 1 ? limits(workload) : []),
    ],
  };
}

export const PLAIN: readonly Experiment[] = (['memory', 'disk'] as const).flatMap((place) =>
  [1, 4].flatMap((connections) => WORKLOADS.map((workload) => plainExperiment(workload, place, connections))),
);
