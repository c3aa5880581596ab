/** The project's own programs tell how they are used, and what is wrong with a command line. */

import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { expect, it } from 'vitest';

const ROOT = path.join(import.meta.dirname, '..');
const PROGRAMS = {
  'npm run crash': 'scripts/crash.mjs',
  'npm run interop': 'scripts/interop.mjs',
  'npm run live': 'scripts/live.mjs',
  'npm run soak': 'scripts/soak.mjs',
  'npm run test:kernel': 'scripts/test-kernel.mjs',
  'npm run vm': 'scripts/vm.mjs',
  'npm run bench': 'bench/main.ts',
  'npm run fuzz': 'test/fuzz/main.ts',
  'npm run sim': 'test/sim/main.ts',
  'npm run mutations': 'test/sim/mutate.ts',
  'node --import tsx bench/copy-unit.ts': 'bench/copy-unit.ts',
  'node --import tsx bench/persistent.ts': 'bench/persistent.ts',
};

it.each(Object.entries(PROGRAMS))('%s', (command, file) => {
  const run = (option: string): ReturnType<typeof spawnSync> =>
    spawnSync(process.execPath, ['--import', 'tsx', file, option], { cwd: ROOT, encoding: 'utf8' });
  const help = run('--help');
  expect(help.stderr).toBe('');
  expect(help.stdout).toMatch(new RegExp(`^\`${command}`));
  expect(help.status).toBe(0);

  const mistake = run('--nonsense');
  expect(mistake.stderr).toMatch(/^Cannot run: Unknown option '--nonsense'/);
  expect(mistake.stderr).toContain(command);
  expect(mistake.stderr).not.toMatch(/^\s+at /m);
  expect(mistake.status).toBe(2);
});
