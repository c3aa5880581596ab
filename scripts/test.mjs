/** `npm test`: everything, from a fresh clone. Gets the npm packages and, as root on Debian, the programs that
 *  the tests talk to; builds; runs all tests. What could not be tested is named with its reason, above the
 *  counts. Arguments go to vitest: `npm test -- test/interop`. */

import { spawnSync } from 'node:child_process';
import path from 'node:path';

import { canInstall, installDebianPackages, missingPackages } from './debian.mjs';
import { ROOT, build, installPackages, say, styled } from './prepare.mjs';

function getPrograms() {
  const missing = missingPackages();
  if (missing.length === 0) return;
  if (canInstall()) {
    say(`installing Debian packages: ${missing.join(' ')}`);
    if (installDebianPackages(missing) && missingPackages().length === 0) return;
  }
  const names = missingPackages().join(' ');
  console.log(styled('yellow', `Missing here, so the tests that need them are skipped: ${names}`));
  console.log(`On Debian or Ubuntu: sudo apt-get install ${names}`);
}

installPackages();
getPrograms();
build();
say('testing (vitest)');
const vitest = path.join(ROOT, 'node_modules/vitest/vitest.mjs');
const { status } = spawnSync(process.execPath, [vitest, 'run', ...process.argv.slice(2)], {
  cwd: ROOT,
  stdio: ['ignore', 'inherit', 'inherit'],
});
process.exitCode = status ?? 1;
