/** `npm run crash -- --minutes N [--seed N]`: half of the time the daemon is killed at random moments under fio (test/crash.test.ts),
 *  half of it a machine's power is lost, on ext4 and on xfs (test/kernel/uml/power-loss.test.ts, docs/reliability.md). */

import { spawnSync } from 'node:child_process';
import path from 'node:path';

import { readCommandLine } from './command-line.mjs';
import { ROOT, build, installPackages, say } from './prepare.mjs';
import { missingForVm, runInVm } from './vm/run.mjs';

const MEMORY_MIB = 3072;
/** A power loss is looked at in this time, on a quiet machine; one more to record. */
const LOSS_SECONDS = 15;

const { values } = readCommandLine(import.meta.filename, {
  options: { minutes: { type: 'string', default: '10' }, seed: { type: 'string' } },
});
const minutes = Number(values.minutes);
const seed = values.seed ?? String(Date.now() % 1_000_000);
if (!(minutes > 0) || !/^\d+$/.test(seed)) {
  console.error('Cannot run: want --minutes above 0, and --seed as a whole number');
  process.exit(2);
}
process.chdir(ROOT);
installPackages();
build();
say(`${minutes} minutes with seed ${seed}: the daemon killed`);
const vitest = path.join(ROOT, 'node_modules/vitest/vitest.mjs');
const env = { ...process.env, BLKSNAP_CRASH_MINUTES: String(minutes / 2), BLKSNAP_SEED: seed };
const words = ['run', '--project', 'system', 'test/crash.test.ts'];
process.exitCode = spawnSync(process.execPath, [vitest, ...words], { env, stdio: 'inherit' }).status ?? 1;

const missing = missingForVm('uml');
if (missing.length > 0) {
  console.error(`Cannot lose power without the Debian packages ${missing.join(' ')}; install them`);
  process.exit(1);
}
say('power lost');
const losses = Math.max(3, Math.floor((minutes * 15) / LOSS_SECONDS));
const settings = `BLKSNAP_POWER_LOSSES=${losses} BLKSNAP_POWER_SYSTEMS=ext4,xfs BLKSNAP_SEED=${seed}`;
const command = `${settings} ${process.execPath} ${vitest} run --project=kernel-uml test/kernel/uml/power-loss.test.ts`;
const limitSeconds = Math.ceil(minutes * 60 * 4 + 600);
if ((await runInVm('uml', { command, memoryMiB: MEMORY_MIB, limitSeconds })) !== 0) process.exitCode = 1;
