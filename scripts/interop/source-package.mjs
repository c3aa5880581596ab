/** Debian source packages: fetched with apt-get, which checks their signatures, and unpacked into a cache outside of
 *  the project. Touches no configuration of the machine: the releases are asked through lists of our own. */

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

/** Where sources and builds are kept. */
export const CACHE = path.join(process.env['XDG_CACHE_HOME'] ?? path.join(os.homedir(), '.cache'), 'blksnap-interop');

/** The code name of this machine's release: `bookworm`. */
export function thisRelease() {
  return /^VERSION_CODENAME=(.*)$/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1] ?? '';
}

/** The machine's own source of packages, for the sources of another release.
 *  @param {string} release */
function sourcesOf(release) {
  const own = thisRelease();
  const places = ['/etc/apt/sources.list'];
  if (existsSync('/etc/apt/sources.list.d')) {
    places.push(...readdirSync('/etc/apt/sources.list.d').map((name) => path.join('/etc/apt/sources.list.d', name)));
  }
  for (const place of places.filter((name) => existsSync(name))) {
    const text = readFileSync(place, 'utf8');
    const line = new RegExp(`^deb (\\[.*\\] )?(\\S+) ${own} main\\b.*$`, 'm').exec(text);
    if (line !== null) return { name: 'own.list', text: `deb-src ${line[1] ?? ''}${line[2]} ${release} main\n` };
    const stanza = text.split(/\n\s*\n/).find((part) => new RegExp(`^Suites:.*\\b${own}( |$)`, 'm').test(part));
    if (stanza !== undefined) {
      const changed = stanza.replace(/^Types:.*$/m, 'Types: deb-src').replace(/^Suites:.*$/m, `Suites: ${release}`);
      return { name: 'own.sources', text: `${changed}\n` };
    }
  }
  throw new Error(`Cannot find where this machine gets its packages of "${own}"; want it in /etc/apt/sources.list.d`);
}

/** Runs a program; its output goes to a log file, whose end is shown when it fails.
 *  @param {string} program
 *  @param {readonly string[]} args
 *  @param {{ cwd: string, log: string, env?: NodeJS.ProcessEnv }} options */
export function runLogged(program, args, { cwd, log, env }) {
  const result = spawnSync(program, args, { cwd, env: env ?? process.env, encoding: 'utf8', maxBuffer: 1 << 28 });
  const said = `${result.stdout}${result.stderr}`;
  writeFileSync(log, `$ ${program} ${args.join(' ')}\n${said}\n`, { flag: 'a' });
  if (result.status === 0) return;
  const end = said.split('\n').slice(-15).join('\n');
  throw new Error(`${program} ${args.join(' ')}: ${result.error?.message ?? `exit status ${result.status}`}\n${end}`);
}

/** The directory with the unpacked source of a package, which is fetched if it is not there.
 *  @param {string} name
 *  @param {{ release: string }} options
 *  @returns {{ dir: string, version: string }} */
export function sourcePackage(name, { release }) {
  const home = path.join(CACHE, `${name}-${release}`);
  const dir = path.join(home, 'source');
  const version = path.join(home, 'version');
  if (!existsSync(version)) {
    rmSync(home, { recursive: true, force: true });
    const lists = path.join(home, 'apt');
    for (const part of ['lists/partial', 'cache/archives/partial', 'parts']) {
      mkdirSync(path.join(lists, part), { recursive: true });
    }
    const sources = sourcesOf(release);
    writeFileSync(path.join(lists, 'parts', sources.name), sources.text);
    const settings = [
      `Dir::State::lists=${lists}/lists`,
      `Dir::Cache=${lists}/cache`,
      'Dir::Etc::sourcelist=/dev/null',
      `Dir::Etc::sourceparts=${lists}/parts`,
      'APT::Sandbox::User=root',
    ];
    const own = settings.flatMap((setting) => ['-o', setting]);
    const log = path.join(home, 'log');
    runLogged('apt-get', [...own, 'update'], { cwd: home, log });
    runLogged('apt-get', [...own, 'source', '--download-only', name], { cwd: home, log });
    const description = readdirSync(home).find((file) => file.endsWith('.dsc'));
    if (description === undefined) throw new Error(`apt-get source ${name} brought no .dsc file to ${home}`);
    runLogged('dpkg-source', ['--no-check', '-x', description, 'source'], { cwd: home, log });
    writeFileSync(version, description.replace(/^.*_(.*)\.dsc$/, '$1'));
  }
  return { dir, version: readFileSync(version, 'utf8') };
}
