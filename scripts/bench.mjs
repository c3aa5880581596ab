/** `npm run bench`: builds, then measures (bench/main.ts). */

import { spawnSync } from 'node:child_process';
import path from 'node:path';

import { ROOT, build, installPackages } from './prepare.mjs';

installPackages();
if (!process.argv.includes('--json')) build();
const args = ['--import', 'tsx', path.join(ROOT, 'bench/main.ts'), ...process.argv.slice(2)];
process.exitCode = spawnSync(process.execPath, args, { cwd: ROOT, stdio: 'inherit' }).status ?? 1;
