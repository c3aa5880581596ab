/** What a fresh clone needs before anything of it can run: npm packages and a build. Plain Node, no packages.
 *  A step says what it does, does nothing where nothing is to be done, and ends the program when it fails. */

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { styleText } from 'node:util';

export const ROOT = fileURLToPath(new URL('..', import.meta.url));

/** Text in a style on a terminal; plain in a file or a pipe, and where NO_COLOR is set.
 *  @param {Parameters<typeof styleText>[0]} style
 *  @param {string} text */
export function styled(style, text) {
  const plain = !process.stdout.isTTY || (process.env['NO_COLOR'] ?? '') !== '';
  return plain ? text : styleText(style, text);
}

/** One line about what comes next.
 *  @param {string} text */
export function say(text) {
  console.log(`${styled('cyan', '▸')} ${text}`);
}

/** Runs a command in the project's root with its output shown. Ends this program when it fails.
 *  @param {string} command
 *  @param {readonly string[]} args */
function runOrExit(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: ROOT, stdio: ['ignore', 'inherit', 'inherit'] });
  if (status === 0) return;
  console.error(`Cannot go on: ${command} ${args.join(' ')}: ${error?.message ?? `exit status ${status}`}`);
  process.exit(1);
}

/** @typedef {{ version?: string, optional?: boolean, devOptional?: boolean }} LockedPackage */

/** @param {string} file
 *  @returns {Record<string, LockedPackage>} */
function packagesOf(file) {
  const at = path.join(ROOT, file);
  if (!existsSync(at)) return {};
  return JSON.parse(readFileSync(at, 'utf8')).packages;
}

/** Whether node_modules holds every package of the lock file in its version. Optional ones may be
 *  missing: they are for other platforms. */
function packagesAreInstalled() {
  const installed = packagesOf('node_modules/.package-lock.json');
  return Object.entries(packagesOf('package-lock.json')).every(([at, wanted]) => {
    const found = installed[at];
    if (at === '' || (found === undefined && wanted.optional === true)) return true;
    return found?.version === wanted.version;
  });
}

/** Installs what package-lock.json says, and changes nothing in it. Not `npm ci`: that refuses a lock file without
 *  the optional packages of every other platform, which not every npm server has. */
export function installPackages() {
  if (packagesAreInstalled()) return;
  say('installing npm packages (npm install --no-save)');
  runOrExit('npm', ['install', '--no-save']);
  if (packagesAreInstalled()) return;
  console.error(
    'Cannot go on: what npm installed is not what package-lock.json says; remove node_modules and try again',
  );
  process.exit(1);
}

/** Makes dist/ of src/. */
export function build() {
  say('building (npm run build)');
  runOrExit(process.execPath, [path.join(ROOT, 'scripts/build.mjs')]);
}
