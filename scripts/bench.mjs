/** `npm run bench`: gets what it needs, builds, then measures (bench/main.ts). With --json it expects both done. With
 *  `--kernel uml|qemu` it measures kernel devices instead (bench/kernel/main.ts), in a kernel of its own. */

import { spawnSync } from 'node:child_process';
import path from 'node:path';

import { ROOT, build, installPackages } from './prepare.mjs';
import { getPrograms } from './programs.mjs';
import { VM_KERNELS, missingForVm, runInVm } from './vm/run.mjs';

const MEMORY_MIB = 3072;
const LIMIT_SECONDS = 3600;

/** @param {readonly string[]} words what follows `--kernel` */
async function benchKernel([name, ...words]) {
  const kernel = VM_KERNELS.find((one) => one === name);
  const missing = kernel === undefined ? [] : missingForVm(kernel);
  if (kernel === undefined || missing.length > 0) {
    console.error(
      kernel === undefined
        ? `Cannot measure: --kernel is ${name}, want ${VM_KERNELS.join(' or ')}`
        : `Cannot measure: missing here: ${missing.join(' ')}; install these Debian packages`,
    );
    return 2;
  }
  const command = [process.execPath, '--import', 'tsx', 'bench/kernel/main.ts', ...words].join(' ');
  process.chdir(ROOT);
  return await runInVm(kernel, { command, memoryMiB: MEMORY_MIB, limitSeconds: LIMIT_SECONDS });
}

installPackages();
const words = process.argv.slice(2);
// What says so on standard output must not come between a reader and the report.
if (!words.includes('--json') && !words.includes('--help')) {
  getPrograms('who needs them is not measured');
  build();
}
if (words[0] === '--kernel') {
  process.exitCode = await benchKernel(words.slice(1));
} else {
  const args = ['--import', 'tsx', path.join(ROOT, 'bench/main.ts'), ...words];
  process.exitCode = spawnSync(process.execPath, args, { cwd: ROOT, stdio: 'inherit' }).status ?? 1;
}
