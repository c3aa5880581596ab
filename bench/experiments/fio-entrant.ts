/** Entrants that fio measures on a server: started, warmed up, measured, its CPU time counted, stopped. */

import { runFio } from '../fio.ts';
import type { FioJob, FioRange } from '../fio.ts';
import type { Entrant, Sample, Stage } from '../measurement.ts';
import { cpuMs } from '../process-cost.ts';
import type { RunningServer, ServerRow } from '../servers.ts';

const MIB = 1024 * 1024;
/** The end of the disk is for warming up, so that the rest is untouched when it is measured. */
const WARM_UP_BYTES = 32 * MIB;

export function measuredRange({ settings }: Stage): FioRange {
  return { offset: 0, length: settings.diskBytes - WARM_UP_BYTES };
}

export interface FioEntrantOptions {
  readonly job: FioJob;
  readonly unit: 'IOPS' | 'MiB/s';
  readonly connections?: number;
  /** What fio connects to; default is the disk. */
  readonly uriOf?: (server: RunningServer) => string;
  /** Done after the start, before measuring. */
  readonly prepare?: (server: RunningServer, stage: Stage) => Promise<void>;
}

/** Measures a running server. */
export async function measureServer(
  server: { readonly pid: number },
  uri: string,
  { stage, job, unit, connections = 1 }: FioEntrantOptions & { readonly stage: Stage },
): Promise<Sample> {
  const target = { uris: Array.from({ length: connections }, () => uri) };
  const range = measuredRange(stage);
  const warmUp = { range: { offset: range.length, length: WARM_UP_BYTES }, dir: stage.dir };
  const result = await runFio(job, { target, range, runMs: stage.settings.runMs, warmUp });
  const spentMs = cpuMs(server.pid) - cpuMs(server.pid, result.processes);
  return {
    value: unit === 'IOPS' ? result.iops : result.mibPerSecond,
    p50Us: result.p50Us,
    p99Us: result.p99Us,
    cpuUs: (spentMs * 1000) / result.requests,
  };
}

export function fioEntrant(row: ServerRow, options: FioEntrantOptions): Entrant {
  return {
    name: row.name,
    title: row.title,
    needs: ['fio', ...row.needs],
    measure: async (stage) => {
      const server = await row.start(stage);
      try {
        await options.prepare?.(server, stage);
        const uri = options.uriOf?.(server) ?? server.uri;
        return await measureServer(server, uri, { ...options, stage });
      } finally {
        await server.stop();
      }
    },
  };
}

/** Overwrites the whole disk once, in order. */
export async function overwrite(uri: string, stage: Stage, skipBytes?: number): Promise<void> {
  const blockBytes = skipBytes ?? MIB;
  const job = { rw: 'write', blockBytes, queueDepth: 8, onePass: true, ...(skipBytes && { skipBytes }) } as const;
  await runFio(job, { target: { uris: [uri] }, range: measuredRange(stage), runMs: 120_000 });
}
