/** No dependency has a known hole, as the registry tells. Where the registry cannot be asked, the test is skipped by name. */

import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { expect, it } from 'vitest';

interface Report {
  readonly vulnerabilities?: Record<string, { readonly severity: string; readonly via: readonly unknown[] }>;
  readonly message?: string;
  readonly error?: { readonly summary?: string };
}

it('no dependency has a known vulnerability', (context) => {
  const { stdout, stderr, error } = spawnSync('npm', ['audit', '--json', '--fetch-retries=0'], {
    cwd: path.join(import.meta.dirname, '../..'),
    encoding: 'utf8',
    timeout: 60_000,
  });
  const report = JSON.parse(stdout === '' ? '{}' : stdout) as Report;
  const reason = report.message || report.error?.summary || error?.message || stderr.trim().split('\n').at(-1);
  context.skip(report.vulnerabilities === undefined, `needs a registry that answers \`npm audit\`: ${reason}`);
  const known = Object.entries(report.vulnerabilities!).map(([name, { severity }]) => `${name} (${severity})`);
  expect(known).toEqual([]);
});
