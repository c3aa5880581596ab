/** What a test needs of the machine. A test that cannot run here is skipped with the reason, which the run
 *  prints; nothing is ever passed over in silence. */

import { existsSync } from 'node:fs';
import type { TestContext } from 'vitest';

import { VM_PACKAGES, findProgram, isInstalled, missingOf } from '../scripts/debian.mjs';

/** Debian package by program, for the reason. */
const PACKAGE_OF: Record<string, string> = {
  'qemu-img': 'qemu-utils',
  'qemu-io': 'qemu-utils',
  'qemu-nbd': 'qemu-utils',
  nbdinfo: 'libnbd-bin',
  nbdcopy: 'libnbd-bin',
  'nbd-client': 'nbd-client',
  nbdkit: 'nbdkit',
  fio: 'fio',
  'mkfs.ext4': 'e2fsprogs',
  fdisk: 'fdisk',
  sfdisk: 'fdisk',
  sgdisk: 'gdisk',
  parted: 'parted',
  openssl: 'openssl',
  setpriv: 'util-linux',
  curl: 'curl',
  'mkfs.xfs': 'xfsprogs',
  dmsetup: 'dmsetup',
  prlimit: 'util-linux',
  ss: 'iproute2',
};

/** Skips the test unless every program is here. */
export function requirePrograms(context: TestContext, ...names: readonly string[]): void {
  const missing = names.filter((name) => findProgram(name) === undefined);
  const said = missing.map((name) => `${name} (Debian package ${PACKAGE_OF[name] ?? 'unknown'})`);
  context.skip(missing.length > 0, `needs ${said.join(', ')}`);
}

/** Skips the test unless Python can import libnbd's module. */
export function requirePythonNbd(context: TestContext): void {
  requirePrograms(context, 'python3');
  context.skip(!existsSync('/usr/lib/python3/dist-packages/nbd.py'), 'needs python3-libnbd');
}

/** Skips the test unless it runs as root. */
export function requireRoot(context: TestContext): void {
  context.skip(process.getuid?.() !== 0, 'needs root');
}

/** Skips the test unless it runs in a kernel of its own. It takes devices there that somebody may use here. */
export function requireTestKernel(context: TestContext): void {
  const reason = process.env['BLKSNAP_NO_TEST_KERNEL'] ?? 'runs in a kernel of its own: npm run test:kernel';
  context.skip(process.env['BLKSNAP_TEST_KERNEL'] === undefined, reason);
}

/** Skips the test unless a machine with a kernel of its own can be run. */
export function requireVm(context: TestContext, kernel: keyof typeof VM_PACKAGES): void {
  const missing = missingOf(VM_PACKAGES[kernel]);
  context.skip(missing.length > 0, `needs the Debian packages ${missing.join(' ')}`);
}

/** Skips the test unless Debian's source packages can be fetched, and built with these packages. */
export function requireDebianSources(context: TestContext, packages: readonly string[]): void {
  requireRoot(context);
  const missing = ['apt-get', 'dpkg-source'].filter((name) => findProgram(name) === undefined);
  const said = [...missing, ...(missing.length > 0 ? [] : packages.filter((name) => !isInstalled(name)))];
  context.skip(said.length > 0, `needs ${said.join(', ')} (npm run interop installs what Debian has)`);
}
