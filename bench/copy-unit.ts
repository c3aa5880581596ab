/** `node --import tsx bench/copy-unit.ts [--rounds N] [--dir DIR]`: what larger copy units give, and cost, writes that touch a
 *  disk first. In turns: without a snapshot, and with one on a daemon for each unit; over NBD. Expects `npm run build`, and fio. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { readCommandLine } from '../scripts/command-line.mjs';
import { startDaemon } from './blksnap-server.ts';
import type { Daemon } from './blksnap-server.ts';
import { runFio } from './fio.ts';
import type { FioJob } from './fio.ts';
import { cpuMs } from './process-cost.ts';
import { writtenSpread } from './statistics.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
const DISK_BYTES = 256 * MIB;
const LONGEST_MS = 60_000;
const UNITS = ['4K', '64K', '256K'];

const { values } = readCommandLine(import.meta.filename, {
  options: { rounds: { type: 'string', default: '7' }, dir: { type: 'string', default: '/var/tmp' } },
});

const small = { blockBytes: 4 * KIB, queueDepth: 32, onePass: true } as const;
const WORKLOADS: Readonly<Record<string, FioJob>> = {
  '4 KiB random, a 64th of the disk': { ...small, rw: 'randwrite', requests: DISK_BYTES / (4 * KIB) / 64 },
  '4 KiB random, all of it': { ...small, rw: 'randwrite' },
  '4 KiB sequential': { ...small, rw: 'write' },
  '1 MiB sequential': { rw: 'write', blockBytes: MIB, queueDepth: 4, onePass: true },
};

interface Cost {
  readonly writesPerSecond: number;
  /** For each write. */
  readonly cpuUs: number;
  readonly reads: number;
  readonly storedKib: number;
}

async function measure({ client, pid }: Daemon, job: FioJob, storage: string | null): Promise<Cost> {
  const { uri } = await client.disk('disk');
  const snapshot = storage === null ? null : await client.createSnapshot({ disks: ['disk'], storage });
  const [before, cpuBefore] = [(await client.status()).copies, cpuMs(pid)];
  const range = { offset: 0, length: DISK_BYTES };
  const { iops, requests } = await runFio(job, { target: { uris: [uri] }, range, runMs: LONGEST_MS });
  // When it is gone, all its copies have been counted.
  const cpu = cpuMs(pid) - cpuBefore;
  if (snapshot !== null) await client.destroySnapshot(snapshot.id);
  const after = (await client.status()).copies;
  return {
    writesPerSecond: iops,
    cpuUs: (cpu * 1000) / requests,
    reads: (after.reads - before.reads) / requests,
    storedKib: (after.storedBytes - before.storedBytes) / KIB / requests,
  };
}

async function open(directory: string, unit: string): Promise<Daemon> {
  fs.mkdirSync(directory);
  const file = path.join(directory, 'disk.img');
  execFileSync('dd', ['if=/dev/urandom', `of=${file}`, 'bs=1M', `count=${DISK_BYTES / MIB}`], { stdio: 'ignore' });
  const daemon = await startDaemon(path.join(directory, 'daemon'), 'uring', ['--copy-unit', unit]);
  await daemon.client.attach({ path: file, name: 'disk' });
  return daemon;
}

const directory = fs.mkdtempSync(path.join(values.dir, 'blksnap-copy-unit-'));
const daemons: Daemon[] = [];
try {
  for (const unit of UNITS) daemons.push(await open(path.join(directory, unit), unit));
  for (const [name, job] of Object.entries(WORKLOADS)) {
    const without: Cost[] = [];
    const held = UNITS.map((): Cost[] => []);
    for (let round = 0; round < Number(values.rounds); round++) {
      without.push(await measure(daemons[0]!, job, null));
      for (const [i, daemon] of daemons.entries()) held[i]!.push(await measure(daemon, job, directory));
    }
    const of = (costs: readonly Cost[], key: keyof Cost): number[] => costs.map((cost) => cost[key]);
    console.log(`${name}: without a snapshot ${writtenSpread(of(without, 'writesPerSecond'))} writes a second`);
    for (const [i, unit] of UNITS.entries()) {
      const costs = held[i]!;
      const kept = costs.map(({ writesPerSecond }, round) => writesPerSecond / without[round]!.writesPerSecond);
      const cpu = costs.map(({ cpuUs }, round) => cpuUs / held[0]![round]!.cpuUs);
      console.log(
        `  ${unit}: keeps ${writtenSpread(kept)}; for each write ${writtenSpread(of(costs, 'reads'))} reads, ` +
          `${writtenSpread(of(costs, 'storedKib'))} KiB stored, CPU time ${writtenSpread(of(costs, 'cpuUs'))} us, ` +
          `to that of 4K ${writtenSpread(cpu)}`,
      );
    }
  }
} finally {
  for (const daemon of daemons) await daemon.stop();
  fs.rmSync(directory, { recursive: true });
}
