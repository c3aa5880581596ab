/** `npm test`: everything, from a fresh clone. Gets the npm packages and, as root on Debian, the programs that
 *  the tests talk to; builds; runs all tests, at last a share of those that need a kernel of their own. What could not be tested
 *  is named with its reason, above the counts. Arguments go to vitest, and then no kernel is started:
 *  `npm test -- test/interop`. */

import { spawnSync } from 'node:child_process';
import path from 'node:path';

import { ROOT, build, installPackages, say } from './prepare.mjs';
import { getPrograms } from './programs.mjs';

installPackages();
getPrograms('the tests that need them are skipped');
build();
say('testing (vitest)');
const vitest = path.join(ROOT, 'node_modules/vitest/vitest.mjs');
const given = process.argv.slice(2);
// One file at a time: the tests under load measure, and bring their own.
const here = [vitest, 'run', '--maxWorkers=1', ...(given.length > 0 ? given : ['--project=!kernel-*'])];
const runs = given.length > 0 ? [here] : [here, [path.join(ROOT, 'scripts/test-kernel.mjs'), '--built', '--share']];
const statuses = runs.map(
  (args) => spawnSync(process.execPath, args, { cwd: ROOT, stdio: ['ignore', 'inherit', 'inherit'] }).status,
);
process.exitCode = statuses.every((status) => status === 0) ? 0 : 1;
