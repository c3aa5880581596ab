/** A machine of QEMU with the newer kernel of Debian's backports, its root file system this machine's by 9p, read
 *  only. With KVM where that really works: nested, it may be offered and hang; so it is tried once per boot of this
 *  machine, with a limit, and emulated where it fails. */

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { say } from '../prepare.mjs';
import { getBackportsKernel } from './backports-kernel.mjs';

const PROGRAM = 'qemu-system-x86_64';
const PROBE_LIMIT_SECONDS = 10;
const PROCESSORS = 2;

/** @param {string} kernel directory of vmlinuz and initrd
 *  @param {{ readonly kvm: boolean, readonly memoryMiB: number, readonly words: string }} machine */
function baseArgs(kernel, { kvm, memoryMiB, words }) {
  const accelerator = kvm ? ['-accel', 'kvm', '-cpu', 'host'] : ['-accel', 'tcg,thread=multi', '-cpu', 'max,la57=off'];
  // The kernel counts the timer's ticks while it boots, and panics where a busy host gave it none meanwhile.
  const quick = 'mitigations=off tsc=reliable no_timer_check nowatchdog random.trust_cpu=on panic=-1 quiet';
  return [
    ...accelerator,
    '-M',
    'q35',
    '-m',
    String(memoryMiB),
    '-smp',
    String(PROCESSORS),
    '-nodefaults',
    '-no-user-config',
    '-display',
    'none',
    '-no-reboot',
    '-device',
    'virtio-rng-pci',
    '-kernel',
    path.join(kernel, 'vmlinuz'),
    '-initrd',
    path.join(kernel, 'initrd'),
    '-append',
    `console=ttyS0 ${quick} ${words}`,
  ];
}

/** Whether a machine comes up with KVM. Remembered until this machine boots again.
 *  @param {string} kernel */
function kvmWorks(kernel) {
  if (!existsSync('/dev/kvm')) return false;
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  const memory = path.join(kernel, 'kvm');
  const known = existsSync(memory) ? readFileSync(memory, 'utf8') : '';
  if (known.startsWith(boot)) return known.endsWith('works');
  const args = [...baseArgs(kernel, { kvm: true, memoryMiB: 256, words: 'blksnap.probe' }), '-serial', 'null'];
  const { status } = spawnSync('timeout', ['--kill-after=1', String(PROBE_LIMIT_SECONDS), PROGRAM, ...args], {
    stdio: 'ignore',
  });
  if (status !== 0) say('KVM does not work here: emulating');
  writeFileSync(memory, `${boot} ${status === 0 ? 'works' : 'fails'}`);
  return status === 0;
}

/** @param {string} id
 *  @param {string} source
 *  @param {string} options */
function shared(id, source, options) {
  return [
    '-fsdev',
    `local,id=${id},path=${source},security_model=none${options}`,
    '-device',
    `virtio-9p-pci,fsdev=${id},mount_tag=${id}`,
  ];
}

/** As umlCommand.
 *  @param {string} directory
 *  @param {number} memoryMiB
 *  @returns {import("./run.mjs").VmCommand & { readonly output: string }} */
export function qemuCommand(directory, memoryMiB) {
  const kernel = getBackportsKernel();
  const words = `blksnap.modules=${path.join(kernel, 'kernel/lib/modules')}`;
  const args = [
    ...baseArgs(kernel, { kvm: kvmWorks(kernel), memoryMiB, words }),
    '-serial',
    `file:${directory}/console`,
    ...shared('root', '/', ',readonly=on,multidevs=remap'),
    ...shared('host', directory, ''),
    '-device',
    'virtio-serial-pci',
    '-chardev',
    'file,id=out,path=/dev/stdout,append=on',
    '-device',
    'virtserialport,chardev=out,name=out',
  ];
  // A pipe, since QEMU opens its output by name, and a socket has none.
  const script = `"$0" "$@" 2>"${directory}/errors" | cat`;
  return { program: '/bin/sh', args: ['-c', script, PROGRAM, ...args], output: '/dev/$(ls /sys/class/virtio-ports)' };
}
