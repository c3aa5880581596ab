/** The programs that tests and the benchmark talk to, the Debian packages that bring them, and how to get
 *  them. Plain Node, no packages. */

import { spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync } from 'node:fs';
import path from 'node:path';

/** Program, or path that must exist, by Debian package. */
const PACKAGES = new Map([
  ['qemu-utils', ['qemu-img', 'qemu-io', 'qemu-nbd']],
  ['libnbd-bin', ['nbdinfo', 'nbdcopy']],
  ['python3-libnbd', ['/usr/lib/python3/dist-packages/nbd.py']],
  ['nbdkit', ['nbdkit']],
  ['nbd-client', ['nbd-client']],
  ['nbd-server', ['nbd-server']],
  ['qemu-system-common', ['qemu-storage-daemon']],
  ['fio', ['fio']],
  ['e2fsprogs', ['mkfs.ext4', 'debugfs']],
  ['fdisk', ['fdisk', 'sfdisk']],
  ['gdisk', ['sgdisk']],
  ['parted', ['parted']],
  ['openssl', ['openssl']],
  ['curl', ['curl']],
  ['xfsprogs', ['mkfs.xfs', 'xfs_repair']],
  ['dmsetup', ['dmsetup']],
  ['busybox-static', ['busybox']],
  ['kmod', ['modprobe', 'insmod']],
  ['cpio', ['cpio']],
  ['xz-utils', ['xz']],
  ['user-mode-linux', ['linux.uml', '/usr/lib/uml/modules']],
  ['qemu-system-x86', ['qemu-system-x86_64']],
]);

/** Debian packages that a kernel of its own needs, by its kind. */
export const VM_PACKAGES = {
  uml: ['user-mode-linux', 'busybox-static', 'kmod'],
  qemu: ['qemu-system-x86', 'busybox-static', 'kmod', 'cpio', 'xz-utils'],
};

/** Debian has these for x86-64 alone, and apt-get would install nothing at all for one that it does not know. */
const X86_ONLY = new Set(['user-mode-linux', 'qemu-system-x86']);

const PLACES = [...(process.env['PATH'] ?? '').split(path.delimiter), '/usr/sbin', '/sbin'];

/** Where a program is, or undefined.
 *  @param {string} name */
export function findProgram(name) {
  return PLACES.map((place) => path.join(place, name)).find((file) => {
    try {
      accessSync(file, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** Those of the Debian packages of which something is missing here.
 *  @param {readonly string[]} packages
 *  @returns {string[]} */
export function missingOf(packages) {
  const isMissing = (/** @type {string} */ part) =>
    part.startsWith('/') ? !existsSync(part) : findProgram(part) === undefined;
  return packages.filter((name) => PACKAGES.get(name)?.some(isMissing));
}

/** Debian packages that can be had here, and of which something is missing.
 *  @returns {string[]} */
export function missingPackages() {
  return missingOf([...PACKAGES.keys()].filter((name) => process.arch === 'x64' || !X86_ONLY.has(name)));
}

/** Whether a Debian package is installed.
 *  @param {string} name */
export function isInstalled(name) {
  const { stdout } = spawnSync('dpkg-query', ['-W', '-f', '${db:Status-Abbrev}', name], { encoding: 'utf8' });
  return stdout.startsWith('ii');
}

/** Whether packages can be installed here: root, and apt-get. */
export function canInstall() {
  return process.getuid?.() === 0 && findProgram('apt-get') !== undefined;
}

/** Installs Debian packages. Returns whether apt-get was content.
 *  @param {readonly string[]} packages */
export function installDebianPackages(packages) {
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  /** @param {readonly string[]} args */
  const apt = (args) => spawnSync('apt-get', args, { env, stdio: ['ignore', 'ignore', 'inherit'] }).status === 0;
  return apt(['update', '-q']) && apt(['install', '-q', '-y', '--no-install-recommends', ...packages]);
}
