/** `npm test`: everything, from a fresh clone. Gets the npm packages and, as root on Debian, the programs that
 *  the tests talk to; builds; runs all tests. What could not be tested is named with its reason, above the
 *  counts. Arguments go to vitest: `npm test -- test/interop`. */

import { spawnSync } from 'node:child_process';
import path from 'node:path';

import { ROOT, build, installPackages, say } from './prepare.mjs';
import { getPrograms } from './programs.mjs';

installPackages();
getPrograms('the tests that need them are skipped');
build();
say('testing (vitest)');
const vitest = path.join(ROOT, 'node_modules/vitest/vitest.mjs');
// One file at a time: the tests under load measure, and bring their own.
const { status } = spawnSync(process.execPath, [vitest, 'run', '--maxWorkers=1', ...process.argv.slice(2)], {
  cwd: ROOT,
  stdio: ['ignore', 'inherit', 'inherit'],
});
process.exitCode = status ?? 1;
