/** What a test needs of the machine. A test that cannot run here is skipped with the reason, which the run
 *  prints; nothing is ever passed over in silence. */

import { existsSync } from 'node:fs';
import type { TestContext } from 'vitest';

import { findProgram } from '../scripts/debian.mjs';

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
