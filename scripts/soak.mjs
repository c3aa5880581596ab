/** `npm run soak -- --minutes N [--seed N]`: the long tests (test/soak.test.ts), for the given time in all. */

import { spawnSync } from 'node:child_process';
import path from 'node:path';

import { readCommandLine } from './command-line.mjs';
import { ROOT, build, installPackages } from './prepare.mjs';

const { values } = readCommandLine(import.meta.filename, {
  options: { minutes: { type: 'string', default: '10' }, seed: { type: 'string' } },
});
const { minutes } = values;
const seed = values.seed ?? String(Date.now() % 1_000_000);
if (!(Number(minutes) > 0) || !/^\d+$/.test(seed)) {
  console.error('Cannot run: want --minutes above 0, and --seed as a whole number');
  process.exit(2);
}
installPackages();
build();
console.log(`${minutes} minutes with seed ${seed}`);
const vitest = path.join(ROOT, 'node_modules/vitest/vitest.mjs');
const env = { ...process.env, BLKSNAP_SOAK_MINUTES: minutes, BLKSNAP_SEED: seed };
process.exitCode =
  spawnSync(process.execPath, [vitest, 'run', '--project', 'system', 'test/soak.test.ts'], {
    cwd: ROOT,
    env,
    stdio: 'inherit',
  }).status ?? 1;
