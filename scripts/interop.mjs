/** `npm run interop [-- --suite NAME] [--test NAME...] [--verbose]`: test suites that others wrote, unmodified, against our
 *  NBD server (docs/interop.md). Fetches their Debian source packages and builds them outside of the project; needs
 *  root on Debian for what is missing. Fails when a test fails that is not known to. */

import { mkdirSync } from 'node:fs';

import { readCommandLine } from './command-line.mjs';
import { canInstall, installDebianPackages, isInstalled } from './debian.mjs';
import { build, installPackages, say, styled } from './prepare.mjs';
import { KNOWN } from './interop/known.mjs';
import { runSuiteTest } from './interop/run-test.mjs';
import { CACHE } from './interop/source-package.mjs';
import { SUITES } from './interop/suites.mjs';

/** @typedef {import('./interop/run-test.mjs').Outcome} Outcome */

const WORDS = {
  passed: 'passed',
  failed: 'FAILED',
  known: 'cannot pass',
  skipped: 'skipped by the suite',
  elsewhere: 'wants what only its own server has',
  unrelated: 'starts no server',
  'both fail': 'fails here with its own server too',
};

const { values } = readCommandLine(import.meta.filename, {
  options: {
    suite: { type: 'string', multiple: true },
    test: { type: 'string', multiple: true },
    verbose: { type: 'boolean', default: false },
  },
});
const suites = SUITES.filter(({ name }) => values.suite?.includes(name) ?? true);
if (suites.length === 0) {
  console.error(`Cannot run: there is no such suite; want one of ${SUITES.map(({ name }) => name).join(', ')}`);
  process.exit(2);
}
installPackages();
build();
const missing = [...new Set(suites.flatMap(({ packages }) => packages))].filter((name) => !isInstalled(name));
if (missing.length > 0) {
  say(`installing Debian packages: ${missing.join(' ')}`);
  if (!canInstall() || !installDebianPackages(missing)) {
    console.error(`Cannot build the suites without ${missing.join(' ')}; install them first`);
    process.exit(1);
  }
}
mkdirSync(CACHE, { recursive: true });
for (const suite of suites) runSuite(suite);

/** @param {import('./interop/suites.mjs').Suite} suite */
function runSuite(suite) {
  say(`${suite.title}: fetching and building where that is not done`);
  const { version, tests } = suite.prepare();
  const chosen = tests.filter(({ name }) => values.test?.includes(name) ?? true);
  /** @type {Outcome[]} */
  const outcomes = [];
  for (const test of chosen) {
    const outcome = runSuiteTest(test, KNOWN[suite.name] ?? new Map());
    outcomes.push(outcome);
    const { name, verdict, reason, output } = outcome;
    console.log(`  ${name}: ${WORDS[verdict]}${reason === '' ? '' : ` (${reason.slice(0, 120)})`}`);
    if (verdict === 'failed' || values.verbose) console.log(output.split('\n').slice(-60).join('\n'));
  }
  const counts = Object.entries(WORDS).flatMap(([verdict, words]) => {
    const count = outcomes.filter((outcome) => outcome.verdict === verdict).length;
    return count === 0 ? [] : [`${count} ${words}`];
  });
  console.log(styled('bold', `${suite.title} ${version}: ${chosen.length} tests: ${counts.join(', ')}`));
  if (outcomes.some(({ verdict }) => verdict === 'failed')) process.exitCode = 1;
}
