/** What must be reached, by name, and whether it was. A target is a ratio (or a figure) and its bound, asked of each
 *  experiment that it names; a new one is a row. */

import type { Experiment, Sample, Series } from './measurement.ts';
import { median, pairedRatios, spreadOf, valuesOf } from './statistics.ts';
import type { Spread } from './statistics.ts';

interface Target {
  readonly name: string;
  readonly title: string;
  /** Names of experiments. */
  readonly of: RegExp;
  readonly subject: string;
  /** The subject is divided by the best of these, round by round; without any, its figure itself is held to the bound. */
  readonly by: readonly string[];
  readonly metric: string;
  readonly bound: { readonly atLeast: number } | { readonly atMost: number };
  /** An entrant that nobody can beat, for it does less: who reaches nearly its figure has reached what there is. */
  readonly limit: string | undefined;
}

/** `noise`: missed, but some round of this run reached it. `limit`: missed, but the client, or the machine, can do no more. */
export type Verdict = 'met' | 'noise' | 'limit' | 'not met';

/** What the tracker must keep of the rate without. */
const TRACKER_SHARE = 0.97;

/** What the portable driver must keep of uring's rate. */
const PORTABLE_SHARE = 0.6;

/** What is nearly a limit. */
const LIMIT_SHARE = 0.97;

export interface Outcome {
  readonly target: string;
  readonly experiment: string;
  readonly title: string;
  readonly bound: string;
  readonly by: string | null;
  readonly reached: Spread;
  readonly verdict: Verdict;
  /** Judged later, by the medians: which round saw what is not known any more. */
  readonly ofMedians?: true;
}

const PEERS = ['nbdkit-file', 'nbd-server', 'qemu-nbd-threads', 'qemu-nbd-io_uring', 'qemu-storage-daemon'];
const QEMU_CBW = ['qemu-cbw-raw', 'qemu-cbw-qcow2'];
const PLACES = '(?:-disk)?(?:-4c)?$';
const plain = (workloads: string): RegExp => new RegExp(`^(?:${workloads})${PLACES}`);
const ALL_PLAIN = plain('rand(?:read|write|rw)-4k-qd\\d+|(?:read|write)-1m-qd4');
const IMAGE = /^image-/;
const READING = /^write-while-reading-/;

const TARGETS: readonly Target[] = [
  target('deep-queues', '4 KiB at queue depth 32 and 128, by the best peer', plain('rand\\w+-4k-qd(?:32|128)'), {
    subject: 'blksnap-serve',
    by: PEERS,
    atLeast: 1.2,
    limit: 'blksnap-nothing',
  }),
  target('queue-depth-1', '4 KiB at queue depth 1, by the best peer', plain('rand\\w+-4k-qd1'), {
    subject: 'blksnap-serve',
    by: PEERS,
    atLeast: 1,
  }),
  target('sequential', '1 MiB sequential, by the best peer', plain('(?:read|write)-1m-qd4'), {
    subject: 'blksnap-serve',
    by: PEERS,
    atLeast: 1,
  }),
  target('latency', "p99 latency, by the best peer's", ALL_PLAIN, {
    subject: 'blksnap-serve',
    by: PEERS,
    metric: 'p99Us',
    atMost: 1,
  }),
  // Nobody is promised these; they move least with what else the machine does.
  target('cpu', "CPU time per request, by the best peer's", ALL_PLAIN, {
    subject: 'blksnap-serve',
    by: PEERS,
    metric: 'cpuUs',
    atMost: 1,
  }),
  target('cpu-first-touch', 'CPU time per first write, by without a snapshot', /^first-touch-(?:4k-qd|1m)/, {
    subject: 'blksnap-held',
    by: ['blksnap-tracker'],
    metric: 'cpuUs',
    atMost: 2,
  }),
  target('tracker', 'tracker attached, by without', ALL_PLAIN, {
    subject: 'blksnap-tracker',
    by: ['blksnap-serve'],
    atLeast: TRACKER_SHARE,
  }),
  target('tracker-latency', 'tracker attached, p99 latency by without', ALL_PLAIN, {
    subject: 'blksnap-tracker',
    by: ['blksnap-serve'],
    metric: 'p99Us',
    atMost: 1 / TRACKER_SHARE,
  }),
  target(
    'first-touch-random',
    'first touch of chunks at random, kept in a file, by without a snapshot',
    /^first-touch-4k-qd32$/,
    {
      subject: 'blksnap-held',
      by: ['blksnap-tracker'],
      atLeast: 0.65,
    },
  ),
  target(
    'first-touch-sequential',
    'first overwrite in order, kept in a file, by without a snapshot',
    /^first-touch-1m-qd4$/,
    {
      subject: 'blksnap-held',
      by: ['blksnap-tracker'],
      atLeast: 0.6,
    },
  ),
  target('first-touch-random-memory', 'first touch of chunks at random, kept in memory', /^first-touch-4k-qd32$/, {
    subject: 'blksnap-held-memory',
    by: ['blksnap-tracker'],
    atLeast: 0.65,
  }),
  target('first-touch-sequential-memory', 'first overwrite in order, kept in memory', /^first-touch-1m-qd4$/, {
    subject: 'blksnap-held-memory',
    by: ['blksnap-tracker'],
    atLeast: 0.6,
  }),
  target('already-copied', 'writes to chunks already copied, by without a snapshot', /^first-touch-(?:4k-qd|1m)/, {
    subject: 'blksnap-copied',
    by: ['blksnap-tracker'],
    atLeast: 0.95,
  }),
  target('first-touch-qemu', 'first touch, by QEMU copy-before-write', /^first-touch-(?:4k-(?:apart-)?qd32|1m-qd4)$/, {
    subject: 'blksnap-held',
    by: QEMU_CBW,
    atLeast: 2,
  }),
  ...['none', 'half', 'all'].map((copied) =>
    target(`image-${copied}`, `image reads, ${copied} copied, by origin reads`, IMAGE, {
      subject: `image-${copied}`,
      by: ['origin'],
      atLeast: 0.9,
    }),
  ),
  target(
    'write-while-backup',
    'p99 of origin writes during full backups (paced: about 80 MiB/s beside a busy writer), by without',
    READING,
    {
      subject: 'blksnap-backup',
      by: ['blksnap-held'],
      metric: 'p99Us',
      atMost: 1.5,
    },
  ),
  // A pace that is too slow would reach the former.
  target('backup-while-write', 'pace of full backups beside origin writes, MiB/s', READING, {
    subject: 'blksnap-backup',
    metric: 'backupMiBs',
    atLeast: 60,
  }),
  ...[
    ['backup-qcow2', 'full backup, by qemu-img to qcow2', 'value', 'qemu-img-qcow2'],
    ['backup-raw', 'full backup, by the faster of nbdcopy and qemu-img to raw', 'value', 'nbdcopy-raw qemu-img-raw'],
    ['restore-qcow2', 'restore to raw, by qemu-img from qcow2', 'restoreSeconds', 'qemu-img-qcow2'],
    ['restore-raw', 'restore to raw, by a copy from raw', 'restoreSeconds', 'nbdcopy-raw qemu-img-raw'],
  ].map(([name, title, metric, by]) =>
    target(name!, `${title!} (time)`, /^copy/, { subject: 'blksnap', by: by!.split(' '), metric: metric!, atMost: 1 }),
  ),
  ...[
    ['increment-command', "increment of 1 %, whole command by the full's (time)", 'incrementShare', 0.03] as const,
    ['increment-work', "increment of 1 %, copying alone by the full's (time)", 'incrementWorkShare', 0.03] as const,
    ['increment-read', 'increment of 1 %, bytes read by bytes changed', 'incrementReadShare', 1] as const,
  ].map(([name, title, metric, atMost]) => target(name, title, /^copy/, { subject: 'blksnap', metric, atMost })),
  ...(
    [
      ['take', 'writes held by a take of 8 disks, the median by their p99', /^take$/, 'heldByP99', 2],
      ['take-longest', 'writes held by a take of 8 disks, the longest by their p99', /^take$/, 'longestByP99', 2],
      ['take-large', 'time that a take of an idle disk of 16 TiB would hold writes, ms', /^cbt-map$/, 'heldMs', 1],
      ['start', 'start of the daemon, ms', /^daemon$/, 'value', 400],
      ['cbt-map', 'reading the change map of 16 TiB, ms', /^cbt-map$/, 'value', 50],
    ] as const
  ).map(([name, title, of, metric, atMost]) => target(name, title, of, { subject: 'blksnap-daemon', metric, atMost })),
  ...(
    [
      ['', '', 'blksnap-daemon'],
      ['portable-', 'portable driver: ', 'blksnap-daemon-portable'],
    ] as const
  ).flatMap(([prefix, words, subject]) =>
    (
      [
        ['idle-cpu', 'CPU time while idle, ms', 'idleCpuMs', 0],
        // 150 MiB, and the arena's default of 128 MiB.
        ['memory-idle', 'memory while idle, MiB', 'idleMiB', 278],
        ['memory-load', 'memory under load, MiB', 'loadMiB', 278],
      ] as const
    ).map(([name, title, metric, atMost]) =>
      target(`${prefix}${name}`, `${words}${title}`, /^daemon$/, { subject, metric, atMost }),
    ),
  ),
  ...(
    [
      ['portable', 'I/O', ALL_PLAIN, 'blksnap-serve', 'blksnap-portable'],
      ['portable-tracker', 'tracker attached', ALL_PLAIN, 'blksnap-tracker'],
      ['portable-first-touch', 'first touch', /^first-touch-/, 'blksnap-held'],
      ['portable-copied', 'writes to chunks already copied', /^first-touch-/, 'blksnap-copied'],
      ['portable-image-none', 'image reads, nothing copied', IMAGE, 'image-none'],
      ['portable-image-half', 'image reads, half copied', IMAGE, 'image-half'],
      ['portable-image-all', 'image reads, all copied', IMAGE, 'image-all'],
    ] as const
  ).map(([name, title, of, uring, subject = `${uring}-portable`]) =>
    target(name, `portable driver, by uring: ${title}`, of, { subject, by: [uring], atLeast: PORTABLE_SHARE }),
  ),
  ...(
    [
      ['portable-latency', 'p99 latency', ALL_PLAIN, 'p99Us', 'blksnap-serve', 'blksnap-portable'],
      ['portable-tracker-latency', 'p99 latency, tracker attached', ALL_PLAIN, 'p99Us', 'blksnap-tracker'],
      ['portable-backup-latency', 'p99 of origin writes during full backups', READING, 'p99Us', 'blksnap-backup'],
      ['portable-backup', 'full backup (time)', /^copy$/, 'value', 'blksnap'],
      ['portable-increment', 'increment of 1 % (time)', /^copy$/, 'incrementSeconds', 'blksnap'],
      ['portable-daemon', 'start, change map, take (time)', /^(?:daemon|cbt-map|take)$/, 'value', 'blksnap-daemon'],
    ] as const
  ).map(([name, title, of, metric, uring, subject = `${uring}-portable`]) =>
    target(name, `portable driver, by uring: ${title}`, of, {
      subject,
      by: [uring],
      metric,
      atMost: 1 / PORTABLE_SHARE,
    }),
  ),
];

/** Metrics that follow from others of the same sample. */
const DERIVED: Readonly<Record<string, (sample: Sample) => number>> = {
  incrementShare: (sample) => sample['incrementSeconds']! / sample.value,
  heldByP99: (sample) => (sample.value * 1000) / sample['p99Us']!,
  longestByP99: (sample) => (sample['longestMs']! * 1000) / sample['p99Us']!,
};

function withDerived(series: Series): Series {
  const samples = series.samples.map((sample) => {
    if (sample === null) return null;
    const derived = Object.entries(DERIVED).map(([name, from]) => [name, from(sample)] as const);
    return { ...sample, ...Object.fromEntries(derived) };
  });
  return { ...series, samples };
}

interface Asked {
  readonly subject: string;
  readonly by?: readonly string[];
  readonly metric?: string;
  readonly atLeast?: number;
  readonly atMost?: number;
  readonly limit?: string;
}

function target(name: string, title: string, of: RegExp, asked: Asked): Target {
  const { subject, by = [], metric = 'value', limit } = asked;
  const bound = asked.atLeast === undefined ? { atMost: asked.atMost! } : { atLeast: asked.atLeast };
  return { name, title, of, subject, by, metric, bound, limit };
}

/** The reference with the best median; undefined where none was measured. */
function best(list: readonly Series[], metric: string, better: Experiment['better']): Series | undefined {
  const wantsMore = metric === 'value' && better === 'more';
  const figureOf = (series: Series): number => median(valuesOf(series, metric)) * (wantsMore ? -1 : 1);
  return list.filter((series) => valuesOf(series, metric).length > 0).toSorted((a, b) => figureOf(a) - figureOf(b))[0];
}

/** The verdicts on all targets that this experiment answers. */
export function judge(experiment: Experiment, series: readonly Series[]): Outcome[] {
  const measured = series.map(withDerived);
  return TARGETS.filter(({ of }) => of.test(experiment.name)).flatMap((one) => {
    const subject = measured.find(({ entrant }) => entrant === one.subject);
    const references = measured.filter(({ entrant }) => one.by.includes(entrant));
    const reference = best(references, one.metric, experiment.better);
    if (subject === undefined || (one.by.length > 0 && reference === undefined)) return [];
    const values =
      reference === undefined ? valuesOf(subject, one.metric) : pairedRatios(subject, reference, one.metric);
    if (values.length === 0) return [];
    const { bound } = one;
    const passes = (value: number): boolean => ('atLeast' in bound ? value >= bound.atLeast : value <= bound.atMost);
    const reached = spreadOf(values);
    const limit = measured.find(({ entrant }) => entrant === one.limit);
    const byLimit = limit === undefined ? NaN : median(pairedRatios(subject, limit, one.metric));
    const atLimit = 'atLeast' in bound ? byLimit >= LIMIT_SHARE : byLimit <= 1 / LIMIT_SHARE;
    const missed = values.some(passes) ? 'noise' : atLimit ? 'limit' : 'not met';
    const verdict: Verdict = passes(reached.median) ? 'met' : missed;
    return [
      {
        target: one.name,
        experiment: experiment.name,
        title: one.title,
        bound: 'atLeast' in bound ? `≥ ${bound.atLeast}` : `≤ ${Number(bound.atMost.toFixed(2))}`,
        by: reference?.entrant ?? null,
        reached,
        verdict,
      },
    ];
  });
}
