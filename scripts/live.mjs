/** `npm run live [-- [--rounds N] [--seed S]]`: moves a mounted volume under load onto the daemon and back, N times (default
 *  200), in a kernel of its own; the seed (default 1) says when the daemon dies on the way. Builds first. Ends with 1
 *  when anything was lost. Plain Node, no packages. */

import { readCommandLine } from './command-line.mjs';
import { ROOT, build, installPackages } from './prepare.mjs';
import { missingForVm, runInVm } from './vm/run.mjs';

const MEMORY_MIB = 2048;
const START_SECONDS = 300;
const ROUND_SECONDS = 30;

const { values } = readCommandLine(import.meta.filename, {
  options: { rounds: { type: 'string', default: '200' }, seed: { type: 'string', default: '1' } },
});
const [rounds, seed] = [Number(values.rounds), Number(values.seed)];
if (!Number.isInteger(rounds) || rounds < 1 || !Number.isInteger(seed)) {
  console.error('Cannot run: want --rounds of 1 or more, and a --seed that is a number');
  process.exit(2);
}
process.chdir(ROOT);
installPackages();
const missing = missingForVm('uml');
if (missing.length > 0) {
  console.error(`Cannot run: missing here: ${missing.join(' ')}; install these Debian packages`);
  process.exit(2);
}
build();
const test = 'test/kernel/uml/live-attach.test.ts --testNamePattern=under.load';
const command = `ROUNDS=${rounds} SEED=${seed} ${process.execPath} node_modules/vitest/vitest.mjs run --project=kernel-uml ${test}`;
const limitSeconds = START_SECONDS + rounds * ROUND_SECONDS;
process.exitCode = (await runInVm('uml', { command, memoryMiB: MEMORY_MIB, limitSeconds })) === 0 ? 0 : 1;
