/** One run of fio: over NBD connections, or straight on a file. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';

const MIB = 1024 * 1024;
/** For its start and its end, in an emulated machine too. */
const LIMIT_MS = 180_000;

export interface FioJob {
  /** `randrw` reads 70 % and writes 30 %. */
  readonly rw: 'randread' | 'randwrite' | 'randrw' | 'read' | 'write';
  readonly blockBytes: number;
  /** Of each connection. */
  readonly queueDepth: number;
  /** Left out between two sequential requests. */
  readonly skipBytes?: number;
  /** Once over the range, but no longer than the run; no block is visited twice. Otherwise for the whole run. */
  readonly onePass: boolean;
  /** Ends a pass after so many. */
  readonly requests?: number;
}

/** NBD URIs, one connection each; or a file and the engine to use on it; or a block device, past the page cache. */
export type FioTarget =
  | { readonly uris: readonly string[] }
  | { readonly file: string; readonly engine: 'io_uring' | 'sync' }
  | { readonly device: string };

export interface FioRange {
  readonly offset: number;
  readonly length: number;
}

export interface FioRun {
  readonly target: FioTarget;
  readonly range: FioRange;
  readonly runMs: number;
  /** The same for a moment on another range, not measured. `dir` takes a file. */
  readonly warmUp?: { readonly range: FioRange; readonly dir: string };
}

export interface FioResult {
  readonly requests: number;
  readonly iops: number;
  readonly mibPerSecond: number;
  /** From submission to completion; of a mix, the worse direction's. */
  readonly p50Us: number;
  readonly p99Us: number;
  /** /proc/PID/stat of all processes when the measured part began; empty without a warm-up. */
  readonly processes: string;
}

interface Direction {
  readonly iops: number;
  readonly bw_bytes: number;
  readonly total_ios: number;
  readonly lat_ns: { readonly percentile?: Record<string, number> };
}

interface Output {
  readonly jobs: ReadonlyArray<{ readonly error: number; readonly read: Direction; readonly write: Direction }>;
}

type Section = 'warm' | 'job';

/** fio looks every 100 ms whether a delay is over, and then prepares for 100 ms: with this one, the measured part begins
 *  right after the end of the warm-up. */
const DELAY_MS = 150;
const WARM_UP_MS = 190;
/** fio puts what it prints into a file in its directory. */
const PROCESSES = '{ cat /proc/[0-9]*/stat; true; }';
const PROCESSES_FILE = 'job0.prerun.txt';

function fioArguments(job: FioJob, { target, range, runMs, warmUp }: FioRun): string[] {
  const jobs = 'uris' in target ? target.uris.length : 1;
  const stride = job.blockBytes + (job.skipBytes ?? 0);
  const sections = (section: Section, { offset, length }: FioRange): string[] => {
    // Sequential connections share the range, random ones all use the whole of it.
    const share = job.rw.startsWith('rand') ? length : Math.floor(length / jobs / MIB) * MIB;
    const onePass = section === 'job' && job.onePass;
    const ioSize = (job.requests ?? Math.floor(share / stride)) * job.blockBytes;
    return Array.from({ length: jobs }, (_, index) => [
      `--name=${section}${index}`,
      `--offset=${offset + (share === length ? 0 : index * share)}`,
      `--size=${share}`,
      `--runtime=${section === 'job' ? Math.ceil(runMs) : WARM_UP_MS}ms`,
      onePass ? `--io_size=${ioSize}` : '--time_based=1',
      ...('uris' in target ? [`--uri=${target.uris[index]}`] : []),
      ...(warmUp !== undefined && section === 'job' ? [`--startdelay=${DELAY_MS}ms`] : []),
      ...(warmUp !== undefined && section === 'job' && index === 0
        ? ['--new_group=1', `--exec_prerun=${PROCESSES}`]
        : []),
    ]).flat();
  };
  return [
    '--output-format=json',
    '--group_reporting=1',
    '--thread=1',
    '--disk_util=0',
    `--rw=${job.rw}${job.skipBytes === undefined ? '' : `:${job.skipBytes / 1024}k`}`,
    `--bs=${job.blockBytes}`,
    `--iodepth=${job.queueDepth}`,
    '--rwmixread=70',
    '--norandommap=0',
    '--randrepeat=1',
    '--clat_percentiles=0',
    '--lat_percentiles=1',
    '--percentile_list=50:99',
    ...engineArguments(target),
    ...(warmUp === undefined ? [] : sections('warm', warmUp.range)),
    ...sections('job', range),
  ];
}

function engineArguments(target: FioTarget): string[] {
  // Without it fio has the page cache let go of the file: whoever comes next would read from the disk.
  if ('file' in target) return [`--ioengine=${target.engine}`, `--filename=${target.file}`, '--invalidate=0'];
  // Asynchronous also where io_uring would leave the work to threads: on devices without requests, such as brd.
  if ('device' in target) return ['--ioengine=libaio', '--direct=1', `--filename=${target.device}`];
  return ['--ioengine=nbd'];
}

/** Rejects when fio fails or moved no data. */
export async function runFio(job: FioJob, run: FioRun): Promise<FioResult> {
  const args = fioArguments(job, run);
  const { runMs, warmUp } = run;
  const { stdout } = await promisify(execFile)('fio', args, {
    cwd: warmUp?.dir,
    timeout: runMs + LIMIT_MS,
    maxBuffer: 64 * MIB,
  });
  const result = (JSON.parse(stdout.slice(stdout.indexOf('{'))) as Output).jobs.at(-1);
  const directions = [result?.read, result?.write].filter(
    (one) => one !== undefined && one.total_ios > 0,
  ) as Direction[];
  if (result === undefined || result.error !== 0 || directions.length === 0) {
    throw new Error(`fio ${args.join(' ')}: error ${result?.error}, ${directions.length} directions moved data`);
  }
  const sum = (key: 'iops' | 'bw_bytes' | 'total_ios'): number =>
    directions.reduce((total, one) => total + one[key], 0);
  const worst = (key: string): number =>
    Math.max(...directions.map((one) => one.lat_ns.percentile?.[key] ?? Number.NaN)) / 1000;
  return {
    requests: sum('total_ios'),
    iops: sum('iops'),
    mibPerSecond: sum('bw_bytes') / MIB,
    p50Us: worst('50.000000'),
    p99Us: worst('99.000000'),
    processes: warmUp === undefined ? '' : fs.readFileSync(path.join(warmUp.dir, PROCESSES_FILE), 'utf8'),
  };
}
