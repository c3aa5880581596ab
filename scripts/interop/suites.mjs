/** The suites: where each comes from, how it is built with our stand-ins as its servers, and which tests it has.
 *  None is changed: the stand-ins have the names of the servers that a suite starts (stand-ins/serve.sh). */

import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { ROOT } from '../prepare.mjs';
import { CACHE, runLogged, sourcePackage, thisRelease } from './source-package.mjs';

/** @typedef {import('./run-test.mjs').SuiteTest} SuiteTest
 *  @typedef {{ name: string, title: string, packages: readonly string[],
 *    prepare: () => { version: string, tests: SuiteTest[] } }} Suite */

/** Newer than Debian 12's: it knows extended headers. */
const NEWER = 'trixie';

/** A link to the stand-ins that stays where it is when the checkout moves: it is built into the suites. */
function standIns() {
  const link = path.join(CACHE, 'stand-ins');
  rmSync(link, { force: true });
  symlinkSync(path.join(ROOT, 'scripts/interop/stand-ins'), link);
  return link;
}

/** Builds once. @param {string} dir @param {(log: string) => void} steps */
function once(dir, steps) {
  const stamp = path.join(dir, '..', 'built');
  if (existsSync(stamp)) return;
  steps(path.join(dir, '..', 'log'));
  writeFileSync(stamp, '');
}

/** nbd-tester-client, of nbd: the protocol by hand, and a recorded load of 69,000 transactions whose data it checks.
 *  @type {Suite} */
const nbd = {
  name: 'nbd',
  title: 'nbd-tester-client',
  packages: ['gcc', 'make', 'pkg-config', 'libglib2.0-dev', 'libgnutls28-dev', 'dpkg-dev', 'iproute2'],
  prepare() {
    const { dir, version } = sourcePackage('nbd', { release: NEWER });
    const links = standIns();
    const cwd = path.join(dir, 'tests/run');
    const own = path.join(dir, 'nbd-server.own');
    once(dir, (log) => {
      runLogged('./configure', ['--disable-manpages', '--without-libnl', '--enable-syslog'], { cwd: dir, log });
      runLogged('make', [], { cwd: dir, log });
      runLogged('make', ['nbd-tester-client'], { cwd, log });
      renameSync(path.join(dir, 'nbd-server'), own);
      symlinkSync(path.join(links, 'nbd-server'), path.join(dir, 'nbd-server'));
    });
    const names = /^TESTS = ((?:.*\\\n)*.*)/m.exec(readFileSync(path.join(cwd, 'Makefile.am'), 'utf8'))?.[1] ?? '';
    const tests = names.split(/[\s\\]+/).filter((name) => name !== '');
    return {
      version,
      tests: tests.map((name) => ({
        name,
        cwd,
        command: ['./simple_test', `./${name}`],
        env: { DELAY: '4', INTEROP_REAL_nbd_server: own },
        skipped: (status) => (status === 77 ? 'the suite says so' : null),
      })),
    };
  },
};

const LIBNBD_PARTS = ['tests', 'info', 'copy', 'dump', 'interop'];

/** libnbd: its own tests, and those of nbdinfo, nbdcopy and nbddump, all against nbdkit, qemu-nbd or nbd-server.
 *  @type {Suite} */
const libnbd = {
  name: 'libnbd',
  title: 'libnbd',
  packages: (
    'gcc g++ make pkg-config libgnutls28-dev libxml2-dev dpkg-dev gnutls-bin perl ' +
    'nbdkit qemu-utils nbd-server libnbd-bin bsdextrautils'
  ).split(' '),
  prepare() {
    const { dir, version } = sourcePackage('libnbd', { release: NEWER });
    const links = standIns();
    once(dir, (log) => {
      const without = ['python', 'ocaml', 'golang', 'rust', 'fuse', 'ublk', 'static'].map(
        (part) => `--disable-${part}`,
      );
      const servers = [`NBDKIT=${links}/nbdkit`, `QEMU_NBD=${links}/qemu-nbd`, `NBD_SERVER=${links}/nbd-server`];
      const env = { ...process.env, INTEROP_ROOT: ROOT, INTEROP_NOTE: '/dev/null', INTEROP_TMP: CACHE };
      runLogged('./configure', [...without, ...servers], { cwd: dir, log, env });
      runLogged('make', [], { cwd: dir, log, env });
      for (const part of LIBNBD_PARTS) runLogged('make', ['-C', part, 'check', 'TESTS='], { cwd: dir, log, env });
    });
    const print = path.join(dir, '..', 'print.mk');
    writeFileSync(print, 'print-tests:\n\t@echo $(TESTS)\n');
    const tests = LIBNBD_PARTS.flatMap((part) => {
      const cwd = path.join(dir, part);
      const printed = spawnSync('make', ['-s', '-f', 'Makefile', '-f', print, 'print-tests'], {
        cwd,
        encoding: 'utf8',
      });
      return printed.stdout
        .trim()
        .split(/\s+/)
        .map((name) => libnbdTest(name, cwd, part));
    });
    return { version, tests };
  },
};

/** @param {string} name
 *  @param {string} cwd
 *  @param {string} part
 *  @returns {SuiteTest} */
function libnbdTest(name, cwd, part) {
  const result = () => readFileSync(path.join(cwd, `${name}.trs`), 'utf8');
  return {
    name: `${part}/${name}`,
    cwd,
    command: ['make', '-s', 'check-TESTS', `TESTS=${name}`],
    skipped: (status) => (status === 0 && result().includes(':test-result: SKIP') ? 'the suite says so' : null),
  };
}

/** QEMU's tests that know raw images and NBD; the others cannot be about an NBD server. */
const QEMU_TESTS =
  '001 002 003 004 005 008 009 010 011 021 032 033 077 083 094 104 119 123 143 145 147 162 181 184 194 197 205 208 ' +
  '215 218 236 238 240 241 259 277 307 nbd-multiconn';

/** qemu-iotests with raw images over NBD: qemu-io, qemu-img and QEMU itself as clients.
 *  @type {Suite} */
const qemu = {
  name: 'qemu',
  title: 'qemu-iotests, -raw -nbd',
  packages: ['qemu-utils', 'qemu-system-x86', 'qemu-system-common', 'python3', 'dpkg-dev'],
  prepare() {
    const { dir, version } = sourcePackage('qemu', { release: thisRelease() });
    const cwd = path.join(dir, 'tests/qemu-iotests');
    const env = {
      QEMU_PROG: '/usr/bin/qemu-system-x86_64',
      QEMU_IMG_PROG: '/usr/bin/qemu-img',
      QEMU_IO_PROG: '/usr/bin/qemu-io',
      QEMU_NBD_PROG: path.join(standIns(), 'qemu-nbd'),
      QSD_PROG: '/usr/bin/qemu-storage-daemon',
      // Tests refuse to run where a path has a dot.
      TEST_DIR: path.join(os.tmpdir(), 'blksnapiotests'),
    };
    const tests = QEMU_TESTS.split(' ').map((name) => qemuTest(name, cwd, env));
    return { version, tests };
  },
};

/** @param {string} name
 *  @param {string} cwd
 *  @param {NodeJS.ProcessEnv} env
 *  @returns {SuiteTest} */
function qemuTest(name, cwd, env) {
  return {
    name,
    cwd,
    env,
    command: ['./check', '-raw', '-nbd', /^\d/.test(name) ? name : `tests/${name}`],
    skipped: (_status, output) => {
      if (!output.includes('\nNot run: ')) return null;
      return /\] +\.\.\. +(\S.*)$/m.exec(output)?.[1]?.trim() ?? 'the suite says so';
    },
  };
}

export const SUITES = [nbd, libnbd, qemu];
