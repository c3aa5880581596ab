/** `node --import tsx bench/persistent.ts [--rounds N] [--queue-depth N] [--dir DIR]`: what a persistent snapshot costs a
 *  write that touches a chunk first. In turns, on one daemon: an ordinary snapshot, a persistent one, and none;
 *  each time 4 KiB random writes over NBD, every block of the disk once. Expects `npm run build`, and fio. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { withDaemon } from './blksnap-server.ts';
import type { Daemon } from './blksnap-server.ts';
import { runFio } from './fio.ts';

const DISK_BYTES = 128 * 2 ** 20;
const LONGEST_MS = 60_000;

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '7' },
    'queue-depth': { type: 'string', default: '32' },
    dir: { type: 'string', default: '/var/tmp' },
  },
});

type Mode = 'none' | 'ordinary' | 'persistent';
const MODES: readonly Mode[] = ['none', 'ordinary', 'persistent'];

async function measure(
  { client }: Daemon,
  uri: string,
  { mode, storage }: { mode: Mode; storage: string },
): Promise<number> {
  const snapshot =
    mode === 'none'
      ? null
      : await client.createSnapshot({ disks: ['disk'], storage, persistent: mode === 'persistent' });
  const queueDepth = Number(values['queue-depth']);
  const job = { rw: 'randwrite', blockBytes: 4096, queueDepth, onePass: true } as const;
  const range = { offset: 0, length: DISK_BYTES };
  const { iops } = await runFio(job, { target: { uris: [uri] }, range, runMs: LONGEST_MS });
  if (snapshot !== null) await client.destroySnapshot(snapshot.id);
  return iops;
}

function spread(all: readonly number[]): string {
  const sorted = all.toSorted((a, b) => a - b);
  const at = (share: number): string => sorted[Math.floor(share * (sorted.length - 1))]!.toPrecision(3);
  return `${at(0.5)} (${at(0)} to ${at(1)})`;
}

const directory = fs.mkdtempSync(path.join(values.dir, 'blksnap-persistent-'));
try {
  const file = path.join(directory, 'disk.img');
  execFileSync('dd', ['if=/dev/urandom', `of=${file}`, 'bs=1M', `count=${DISK_BYTES / 2 ** 20}`], { stdio: 'ignore' });
  await withDaemon({ dir: directory }, async (daemon) => {
    const { uri } = await daemon.client.attach({ path: file, name: 'disk' });
    const iops = new Map<Mode, number[]>(MODES.map((mode) => [mode, []]));
    for (let round = 0; round < Number(values.rounds); round++)
      for (const mode of MODES) iops.get(mode)!.push(await measure(daemon, uri, { mode, storage: directory }));
    for (const mode of MODES) console.log(`${mode}: ${spread(iops.get(mode)!)} writes a second`);
    const ratios = iops.get('persistent')!.map((value, i) => value / iops.get('ordinary')![i]!);
    console.log(`persistent to ordinary, round by round: ${spread(ratios)}`);
  });
} finally {
  fs.rmSync(directory, { recursive: true });
}
