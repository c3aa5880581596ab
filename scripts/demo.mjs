/** `npm run demo`: gets what it needs, builds, and shows the whole way (demo/main.ts). Can be run again. */

import { spawnSync } from 'node:child_process';
import path from 'node:path';

import { canInstall, findProgram, installDebianPackages } from './debian.mjs';
import { ROOT, build, installPackages, say } from './prepare.mjs';

const FILESYSTEM_PROGRAMS = ['mkfs.ext4', 'debugfs', 'e2fsck'];

/** @returns {boolean} */
function hasFilesystemPrograms() {
  return FILESYSTEM_PROGRAMS.every((name) => findProgram(name) !== undefined);
}

if (!hasFilesystemPrograms() && canInstall()) {
  say('installing the Debian package e2fsprogs');
  installDebianPackages(['e2fsprogs']);
}
if (!hasFilesystemPrograms()) {
  console.error(`${FILESYSTEM_PROGRAMS.join(', ')} are needed: sudo apt-get install e2fsprogs`);
  process.exit(1);
}
installPackages();
build();
const args = ['--import', 'tsx', path.join(ROOT, 'demo/main.ts')];
process.exitCode = spawnSync(process.execPath, args, { cwd: ROOT, stdio: 'inherit' }).status ?? 1;
