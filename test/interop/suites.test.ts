/** A share of the suites that others wrote, unmodified, against `blksnap serve` and the daemon (docs/interop.md):
 *  nbd-tester-client, whose source package is small. `npm run interop` has all of them. */

import { describe, expect, it } from 'vitest';
import { runSuiteTest } from '../../scripts/interop/run-test.mjs';
import { SUITES } from '../../scripts/interop/suites.mjs';
import { requireDebianSources } from '../requirements.ts';

const TESTS = ['cfg1', 'cfgmulti', 'write', 'integrity', 'rowrite', 'unix', 'inetd', 'handshake'];
const suite = SUITES.find(({ name }) => name === 'nbd')!;

describe('nbd-tester-client', () => {
  for (const name of TESTS) {
    it(name, { timeout: 1_800_000 }, (context) => {
      requireDebianSources(context, suite.packages);
      const test = suite.prepare().tests.find((one) => one.name === name)!;
      const { verdict, output } = runSuiteTest(test, new Map());
      expect({ verdict, output }).toMatchObject({ verdict: 'passed' });
    });
  }
});
