/** Runs a command in a kernel of its own: what the two kinds of machine have in common. The machine gets a directory
 *  with the command, and leaves the exit status there; its output comes as it is printed.
 *
 *  It always ends: timeout(1) ends it at its limit, and at once when this process is interrupted or killed. */

import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { VM_PACKAGES, missingOf } from '../debian.mjs';
import { getBackportsKernel } from './backports-kernel.mjs';
import { qemuCommand } from './qemu.mjs';
import { umlCommand } from './uml.mjs';

/** @typedef {'uml' | 'qemu'} VmKernel */
/** @typedef {{ readonly command: string, readonly memoryMiB: number, readonly limitSeconds: number }} VmJob */
/** @typedef {{ readonly program: string, readonly args: readonly string[] }} VmCommand */

/** @type {readonly VmKernel[]} */
export const VM_KERNELS = ['uml', 'qemu'];

/** What timeout(1) ends with when it had to end something, gently or not. */
const TIMED_OUT = 124;
const KILLED = 137;
/** The machine did not come to an end of its own, as timeout(1) and env(1) say it of their own failures. */
const BROKEN = 125;
const LOG_LINES = 20;

/** Debian packages that such a machine needs, and that are not here.
 *  @param {VmKernel} kernel */
export function missingForVm(kernel) {
  return missingOf(VM_PACKAGES[kernel]);
}

/** Gets what such a machine needs beside its packages. Throws with the reason when it cannot be had.
 *  @param {VmKernel} kernel */
export function prepareVm(kernel) {
  if (kernel === 'qemu') getBackportsKernel();
}

/** What every guest runs in its new root: the file systems that hostfs or 9p cannot give, then the command.
 *  @param {VmKernel} kernel
 *  @param {string} output device that this process reads */
function guestScript(kernel, output) {
  return `export PATH='${process.env['PATH']}:/usr/sbin:/sbin' HOME=/root LANG=C TMPDIR=/tmp
export BLKSNAP_TEST_KERNEL=${kernel} DM_DISABLE_UDEV=1 TERM=dumb NO_COLOR=1 CI=1
mount -t tmpfs tmpfs /run
mkdir -p /dev/shm /dev/pts && mount -t tmpfs tmpfs /dev/shm && mount -t devpts devpts /dev/pts
ln -sfn /proc/self/fd /dev/fd
busybox ifconfig lo 127.0.0.1 up
out=${output}
stty -F "$out" raw 2>/dev/null
cd '${process.cwd()}'
setsid /bin/bash /host/command </dev/null >"$out" 2>&1
echo $? >/host/status
sync
exec busybox poweroff -f
`;
}

/** The last words of a machine that did not come to its end.
 *  @param {string} directory */
function lastWords(directory) {
  return ['console', 'errors'].flatMap((name) => {
    const file = path.join(directory, name);
    return existsSync(file) ? readFileSync(file, 'utf8').trimEnd().split('\n').slice(-LOG_LINES) : [];
  });
}

/** Runs the machine with its output on ours. Resolves with what timeout(1) ended with.
 *  @param {VmCommand} machine
 *  @param {number} limitSeconds
 *  @returns {Promise<number>} */
function runMachine({ program, args }, limitSeconds) {
  const words = ['--pdeathsig', 'TERM', 'timeout', '--kill-after=5', String(limitSeconds), program, ...args];
  const child = spawn('setpriv', words, { stdio: ['ignore', 'inherit', 'ignore'] });
  const end = () => child.kill('SIGTERM');
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, end);
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code) => {
      for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.off(signal, end);
      resolve(code ?? BROKEN);
    });
  });
}

/** Runs a shell command, in the directory of this process, in a kernel of its own. Returns its exit status; 124 when
 *  the time was up, 125 when the machine broke down.
 *  @param {VmKernel} kernel
 *  @param {VmJob} job
 *  @returns {Promise<number>} */
export async function runInVm(kernel, { command, memoryMiB, limitSeconds }) {
  const directory = mkdtempSync(path.join(os.tmpdir(), 'blksnap-vm-'));
  try {
    writeFileSync(path.join(directory, 'command'), command);
    const machine = kernel === 'uml' ? umlCommand(directory, memoryMiB) : qemuCommand(directory, memoryMiB);
    writeFileSync(path.join(directory, 'guest'), guestScript(kernel, machine.output));
    const ended = await runMachine(machine, limitSeconds);
    const status = path.join(directory, 'status');
    if (existsSync(status)) return Number(readFileSync(status, 'utf8'));
    if (ended === TIMED_OUT || ended === KILLED) console.error(`The machine was ended after ${limitSeconds} s`);
    else
      console.error(['The machine came to no end of its own; its last words:', ...lastWords(directory)].join('\n  '));
    return ended === TIMED_OUT || ended === KILLED ? TIMED_OUT : BROKEN;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
