/** `npm run test:kernel [-- [--kernel uml|qemu]… [FILE…]]`: the tests that need a kernel of their own, each kind in
 *  one machine of it. Without --kernel: every kind that has files to run. Builds first,
 *  unless --built says that this is done. With --share, as `npm test` runs it, the longest are left out, and named.
 *  Where a machine cannot be had its tests are skipped by name. Ends with 1 when one fails. Plain Node, no packages. */

import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import path from 'node:path';

import { readCommandLine } from './command-line.mjs';
import { ROOT, build, installPackages, say } from './prepare.mjs';
import { VM_KERNELS, missingForVm, prepareVm, runInVm } from './vm/run.mjs';

const MEMORY_MIB = 2048;
/** Of a machine that hangs: its tests have limits of their own, and one without KVM may be many times slower. */
const LIMIT_SECONDS = 3600;
/** What `npm test` leaves to `npm run test:kernel`: the same as others on other ways. */
const LONG = [
  ...['themes', 'lvm', 'live-refusals', 'nbd-variants'].map((name) => `test/kernel/uml/${name}.test.ts`),
  ...['live-attach', 'backups'].map((name) => `test/kernel/qemu/${name}.test.ts`),
];

/** What gets a machine of its own: it takes ram disks and loop devices as it finds them in a new one. */
const ALONE = new Set(['test/kernel/uml/power-loss.test.ts']);

const { values, positionals } = readCommandLine(import.meta.filename, {
  allowPositionals: true,
  options: {
    kernel: { type: 'string', multiple: true },
    built: { type: 'boolean', default: false },
    share: { type: 'boolean', default: false },
  },
});

/** Test files of a kind of machine that were asked for, in the way of vitest: by a part of their path.
 *  @param {string} kernel */
function filesOf(kernel) {
  const directory = `test/kernel/${kernel}`;
  const names = existsSync(path.join(ROOT, directory)) ? readdirSync(path.join(ROOT, directory)) : [];
  const files = names.filter((name) => name.endsWith('.test.ts')).map((name) => `${directory}/${name}`);
  return files
    .filter((file) => positionals.length === 0 || positionals.some((part) => file.includes(part)))
    .filter((file) => !values.share || !LONG.includes(file));
}

/** The files that share a machine, for each machine.
 *  @param {string} kernel */
function machinesOf(kernel) {
  const files = filesOf(kernel);
  const together = files.filter((file) => !ALONE.has(file));
  const alone = files.filter((file) => ALONE.has(file)).map((file) => [file]);
  return together.length > 0 ? [together, ...alone] : alone;
}

/** Why the tests of a kind cannot run here, or undefined.
 *  @param {import('./vm/run.mjs').VmKernel} kernel */
function obstacle(kernel) {
  const missing = missingForVm(kernel);
  if (missing.length > 0) return `needs the Debian packages ${missing.join(' ')}`;
  try {
    prepareVm(kernel);
    return undefined;
  } catch (cause) {
    return cause instanceof Error ? cause.message : String(cause);
  }
}

process.chdir(ROOT);
installPackages();
if (!values.built) build();
const chosen = VM_KERNELS.filter((kernel) => values.kernel?.includes(kernel) ?? true);
let status = 0;
if (values.share) say(`left to npm run test:kernel: ${LONG.join(', ')}`);
for (const kernel of chosen.filter((one) => filesOf(one).length > 0)) {
  const words = [
    'node_modules/vitest/vitest.mjs',
    'run',
    '--maxWorkers=1',
    '--reporter=verbose',
    '--reporter=./test/skip-reporter.ts',
    `--project=kernel-${kernel}`,
  ];
  const reason = obstacle(kernel);
  if (reason === undefined) {
    for (const files of machinesOf(kernel)) {
      say(`testing in a kernel of its own (${kernel})`);
      const command = [process.execPath, ...words, ...files].join(' ');
      const ended = await runInVm(kernel, { command, memoryMiB: MEMORY_MIB, limitSeconds: LIMIT_SECONDS });
      if (ended !== 0) status = 1;
    }
  } else {
    // Here they skip themselves, by name.
    const env = { ...process.env, BLKSNAP_NO_TEST_KERNEL: reason };
    spawnSync(process.execPath, [...words, ...filesOf(kernel)], { env, stdio: ['ignore', 'inherit', 'inherit'] });
  }
}
process.exitCode = status;
