/** One run of fio: over NBD connections, or straight on a file. */

import { execFile } from 'node:child_process';
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

export interface FioResult {
  readonly requests: number;
  readonly iops: number;
  readonly mibPerSecond: number;
  /** From submission to completion; of a mix, the worse direction's. */
  readonly p50Us: number;
  readonly p99Us: number;
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

function fioArguments(job: FioJob, target: FioTarget, range: FioRange, runMs: number): string[] {
  const jobs = 'uris' in target ? target.uris.length : 1;
  // Sequential connections share the range, random ones all use the whole of it.
  const share = job.rw.startsWith('rand') ? range.length : Math.floor(range.length / jobs / MIB) * MIB;
  const stride = job.blockBytes + (job.skipBytes ?? 0);
  const common = [
    '--output-format=json',
    '--group_reporting=1',
    '--thread=1',
    `--rw=${job.rw}${job.skipBytes === undefined ? '' : `:${job.skipBytes / 1024}k`}`,
    `--bs=${job.blockBytes}`,
    `--iodepth=${job.queueDepth}`,
    `--size=${share}`,
    '--rwmixread=70',
    '--norandommap=0',
    '--randrepeat=1',
    '--clat_percentiles=0',
    '--lat_percentiles=1',
    '--percentile_list=50:99',
    `--runtime=${Math.ceil(runMs)}ms`,
    ...(job.onePass
      ? [`--io_size=${(job.requests ?? Math.floor(share / stride)) * job.blockBytes}`]
      : ['--time_based=1']),
  ];
  const place = (index: number): string[] => [
    `--name=job${index}`,
    `--offset=${range.offset + (share === range.length ? 0 : index * share)}`,
  ];
  if ('file' in target) {
    return [...common, `--ioengine=${target.engine}`, ...place(0), `--filename=${target.file}`];
  }
  if ('device' in target) {
    // Asynchronous also where io_uring would leave the work to threads: on devices without requests, such as brd.
    return [...common, '--ioengine=libaio', '--direct=1', ...place(0), `--filename=${target.device}`];
  }
  return [...common, '--ioengine=nbd', ...target.uris.flatMap((uri, index) => [...place(index), `--uri=${uri}`])];
}

/** Rejects when fio fails or moved no data. */
export async function runFio(
  job: FioJob,
  { target, range, runMs }: { readonly target: FioTarget; readonly range: FioRange; readonly runMs: number },
): Promise<FioResult> {
  const args = fioArguments(job, target, range, runMs);
  const { stdout } = await promisify(execFile)('fio', args, { timeout: runMs + LIMIT_MS, maxBuffer: 64 * MIB });
  const result = (JSON.parse(stdout.slice(stdout.indexOf('{'))) as Output).jobs[0];
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
  };
}
