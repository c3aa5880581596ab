/** `npm run vm -- [--kernel uml|qemu] [--memory MIB] [--limit SECONDS] COMMAND…`: runs a shell command as root in a
 *  Linux kernel of its own, over a throw-away overlay of this machine's root file system. Prints its output, ends
 *  with its exit status, and always ends. Plain Node, no packages.
 *
 *  uml: Debian's user-mode-linux, kernel 6.1, up in two seconds anywhere. qemu: the kernel of Debian's backports
 *  (6.12, with ublk_drv), with KVM where that works, emulated where not. */

import { readCommandLine } from './command-line.mjs';
import { missingForVm, runInVm } from './vm/run.mjs';

const { values, positionals } = readCommandLine(import.meta.filename, {
  allowPositionals: true,
  options: {
    kernel: { type: 'string', default: 'uml' },
    memory: { type: 'string', default: '2048' },
    limit: { type: 'string', default: '120' },
  },
});
const { kernel } = values;
const [memoryMiB, limitSeconds] = [Number(values.memory), Number(values.limit)];
if ((kernel !== 'uml' && kernel !== 'qemu') || positionals.length === 0 || !(memoryMiB >= 256) || !(limitSeconds > 0)) {
  console.error('Cannot run: want --kernel uml or qemu, --memory of 256 or more, --limit above 0, and a command');
  process.exit(2);
}
const missing = missingForVm(kernel);
if (missing.length > 0) {
  console.error(`Cannot run: missing here: ${missing.join(' ')}; install these Debian packages`);
  process.exit(2);
}
process.exitCode = await runInVm(kernel, { command: positionals.join(' '), memoryMiB, limitSeconds });
