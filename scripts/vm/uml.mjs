/** A machine of Debian's user-mode-linux: a kernel that is a program, its root file system this machine's by hostfs.
 *  Needs no KVM, no root and no image. It has one processor, and is three times slower where it may wander. */

import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';

const MODULES = '/usr/lib/uml/modules';

/** Processors that this process may use.
 *  @returns {number[]} */
function allowedProcessors() {
  const list = /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  return list.split(',').flatMap((range) => {
    const [first = 0, last = first] = range.split('-').map(Number);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
}

/** The command that runs a machine on what lies in `directory`: `guest` when it is up, its console to `console`.
 *  @param {string} directory
 *  @param {number} memoryMiB
 *  @returns {import('./run.mjs').VmCommand & { readonly output: string }} */
export function umlCommand(directory, memoryMiB) {
  const [version = 'missing'] = readdirSync(MODULES);
  const modules = path.join(MODULES, version);
  const init = path.join(directory, 'init');
  writeFileSync(
    init,
    `#!/bin/sh
mount -t proc proc /proc
busybox mount -t tmpfs -o size=90% tmpfs /mnt
mkdir -p /mnt/up /mnt/work /mnt/root
insmod ${modules}/kernel/fs/overlayfs/overlay.ko
busybox mount -t overlay -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work overlay /mnt/root
cd /mnt/root
mkdir -p host lib/modules
ln -sfn ${modules} lib/modules/$(uname -r)
for type in proc:proc sysfs:sys devtmpfs:dev; do mount -t \${type%:*} none /mnt/root/\${type#*:}; done
busybox mount -t hostfs -o ${directory} none /mnt/root/host
exec busybox chroot /mnt/root /bin/bash /host/guest
`,
    { mode: 0o755 },
  );
  const processors = allowedProcessors();
  const processor = processors[process.pid % processors.length] ?? 0;
  // Consoles: the kernel's own words to a file, the command's output to ours.
  const consoles = `con=null con0=null,fd:3 con1=null,fd:1`;
  const words = `linux.uml mem=${memoryMiB}M rootfstype=hostfs rootflags=/ ro init=${init} ${consoles} loglevel=4`;
  const script = `exec taskset -c ${processor} ${words} 3>${directory}/console 2>${directory}/errors`;
  return { program: '/bin/sh', args: ['-c', script], output: '/dev/tty1' };
}
