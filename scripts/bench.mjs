/** `npm run bench`: gets what it needs, builds, then measures (bench/main.ts). With --json it expects both done. */

import { spawnSync } from 'node:child_process';
import path from 'node:path';

import { ROOT, build, installPackages } from './prepare.mjs';
import { getPrograms } from './programs.mjs';

installPackages();
// What says so on standard output must not come between a reader and the report.
if (!process.argv.includes('--json')) {
  getPrograms('who needs them is not measured');
  build();
}
const args = ['--import', 'tsx', path.join(ROOT, 'bench/main.ts'), ...process.argv.slice(2)];
process.exitCode = spawnSync(process.execPath, args, { cwd: ROOT, stdio: 'inherit' }).status ?? 1;
