/** One measurement: one run of fio over one connection. */

import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

import type { Workload } from './workloads.ts';

export interface Sample {
  /** In the workload's unit. */
  readonly rate: number;
  /** From submission to completion, microseconds. */
  readonly p50Us: number;
  readonly p99Us: number;
}

interface FioDirection {
  readonly iops: number;
  /** Bytes per second. */
  readonly bw_bytes: number;
  readonly total_ios: number;
  readonly lat_ns: { readonly percentile?: Record<string, number> };
}

interface FioResult {
  readonly jobs: ReadonlyArray<{ readonly error: number; readonly read: FioDirection; readonly write: FioDirection }>;
}

function fioArguments(workload: Workload, uri: string, diskBytes: number, runMs: number): string[] {
  const limits = workload.onePass
    ? [`--io_size=${diskBytes}`]
    : ['--time_based=1', `--runtime=${Math.ceil(runMs)}ms`, '--ramp_time=300ms'];
  return [
    `--name=${workload.name}`,
    '--output-format=json',
    '--ioengine=nbd',
    `--uri=${uri}`,
    `--rw=${workload.rw}`,
    `--bs=${workload.blockBytes}`,
    `--iodepth=${workload.queueDepth}`,
    `--size=${diskBytes}`,
    '--randrepeat=1',
    '--clat_percentiles=0',
    '--lat_percentiles=1',
    '--percentile_list=50:99',
    ...limits,
  ];
}

/** Rejects when fio fails or moved no data. */
export async function runFio(workload: Workload, uri: string, diskBytes: number, runMs: number): Promise<Sample> {
  const args = fioArguments(workload, uri, diskBytes, runMs);
  const { stdout } = await promisify(execFile)('fio', args, { timeout: runMs + 60_000, maxBuffer: 16 * 1024 * 1024 });
  const job = (JSON.parse(stdout.slice(stdout.indexOf('{'))) as FioResult).jobs[0];
  const direction = workload.rw.endsWith('read') ? job?.read : job?.write;
  if (job === undefined || direction === undefined || job.error !== 0 || direction.total_ios === 0) {
    throw new Error(`fio ${workload.name} on ${uri}: error ${job?.error}, ${direction?.total_ios} requests done`);
  }
  const percentile = (key: string): number => (direction.lat_ns.percentile?.[key] ?? Number.NaN) / 1000;
  return {
    rate: workload.unit === 'IOPS' ? direction.iops : direction.bw_bytes / (1024 * 1024),
    p50Us: percentile('50.000000'),
    p99Us: percentile('99.000000'),
  };
}
