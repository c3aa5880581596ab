/** `node --import tsx bench/persistent.ts [--rounds N] [--queue-depth N] [--dir DIR]`: what a persistent snapshot costs a
 *  write that touches a chunk first. In turns, on one daemon: an ordinary snapshot, a persistent one, and none;
 *  each time 4 KiB random writes over NBD, every block of the disk once. Expects `npm run build`, and fio. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { readCommandLine } from '../scripts/command-line.mjs';
import { withDaemon } from './blksnap-server.ts';
import type { Daemon } from './blksnap-server.ts';
import { runFio } from './fio.ts';
import { cpuMs } from './process-cost.ts';
import { writtenSpread } from './statistics.ts';

const DISK_BYTES = 512 * 2 ** 20;
const LONGEST_MS = 60_000;

const { values } = readCommandLine(import.meta.filename, {
  options: {
    rounds: { type: 'string', default: '7' },
    'queue-depth': { type: 'string', default: '32' },
    dir: { type: 'string', default: '/var/tmp' },
  },
});

type Mode = 'none' | 'ordinary' | 'persistent';
const MODES: readonly Mode[] = ['none', 'ordinary', 'persistent'];

interface Cost {
  readonly writesPerSecond: number;
  /** Of the daemon, and what it started. */
  readonly cpuUs: number;
}

async function measure({ client, pid }: Daemon, uri: string, where: { mode: Mode; storage: string }): Promise<Cost> {
  const { mode, storage } = where;
  const request = { disks: ['disk'], storage, persistent: mode === 'persistent' };
  const snapshot = mode === 'none' ? null : await client.createSnapshot(request);
  const queueDepth = Number(values['queue-depth']);
  const job = { rw: 'randwrite', blockBytes: 4096, queueDepth, onePass: true } as const;
  const range = { offset: 0, length: DISK_BYTES };
  const before = cpuMs(pid);
  const { iops, requests } = await runFio(job, { target: { uris: [uri] }, range, runMs: LONGEST_MS });
  const cpuUs = ((cpuMs(pid) - before) * 1000) / requests;
  if (snapshot !== null) await client.destroySnapshot(snapshot.id);
  return { writesPerSecond: iops, cpuUs };
}

const directory = fs.mkdtempSync(path.join(values.dir, 'blksnap-persistent-'));
try {
  const file = path.join(directory, 'disk.img');
  execFileSync('dd', ['if=/dev/urandom', `of=${file}`, 'bs=1M', `count=${DISK_BYTES / 2 ** 20}`], { stdio: 'ignore' });
  await withDaemon({ dir: directory }, async (daemon) => {
    const { uri } = await daemon.client.attach({ path: file, name: 'disk' });
    const costs = new Map<Mode, Cost[]>(MODES.map((mode) => [mode, []]));
    for (let round = 0; round < Number(values.rounds); round++)
      for (const mode of MODES) costs.get(mode)!.push(await measure(daemon, uri, { mode, storage: directory }));
    for (const [mode, all] of costs) {
      const rate = writtenSpread(all.map(({ writesPerSecond }) => writesPerSecond));
      console.log(
        `${mode}: ${rate} writes a second, ${writtenSpread(all.map(({ cpuUs }) => cpuUs))} us of CPU time for each`,
      );
    }
    for (const key of ['writesPerSecond', 'cpuUs'] as const) {
      const ratios = costs.get('persistent')!.map((cost, i) => cost[key] / costs.get('ordinary')![i]![key]);
      console.log(`${key}, persistent to ordinary, round by round: ${writtenSpread(ratios)}`);
    }
  });
} finally {
  fs.rmSync(directory, { recursive: true });
}
