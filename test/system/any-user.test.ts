/** The daemon needs no root: as a user who may do nothing else, it serves that user's file, and snapshots it. */

import { execFile, execFileSync, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterEach, expect, test } from 'vitest';
import { requirePrograms } from '../requirements.ts';

const BLKSNAP = path.resolve(import.meta.dirname, '../../bin/blksnap');
const NOBODY = 65_534;
const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-any-user-'));
let daemon: ChildProcess | null = null;
let loop: string | null = null;

afterEach(() => {
  daemon?.kill('SIGKILL');
  if (loop !== null) execFileSync('losetup', ['-d', loop]);
  fs.rmSync(directory, { recursive: true, force: true });
});

/** As root: what makes another user of us. */
function asNobody(): string[] {
  if (process.getuid?.() !== 0) return [];
  return ['setpriv', '--reuid', String(NOBODY), '--regid', String(NOBODY), '--clear-groups', '--bounding-set=-all'];
}

/** As root: a loop device over a file that other users cannot reach. */
function hiddenLoop(): string | null {
  if (process.getuid?.() !== 0) return null;
  const hidden = path.join(directory, 'hidden');
  fs.mkdirSync(hidden, { mode: 0o700 });
  const file = path.join(hidden, 'loop.img');
  fs.writeFileSync(file, Buffer.alloc(1 << 20));
  return execFileSync('losetup', ['--find', '--show', file], { encoding: 'utf8' }).trim();
}

test('a snapshot of a file, without any rights but those to the file', async (context) => {
  requirePrograms(context, 'setpriv', 'qemu-io', 'losetup');
  loop = hiddenLoop();
  const [program, ...words] = [...asNobody(), process.execPath, BLKSNAP];
  const env = { ...process.env, BLKSNAP_DIR: path.join(directory, 'state'), HOME: directory };
  const run = async (...args: string[]): Promise<string> =>
    (await promisify(execFile)(program, [...words, ...args], { env, cwd: directory })).stdout;
  fs.writeFileSync(path.join(directory, 'vm.img'), Buffer.alloc(1 << 20, 1));
  if (process.getuid?.() === 0) {
    for (const place of [directory, path.join(directory, 'vm.img')]) fs.chownSync(place, NOBODY, NOBODY);
    const reaches = await run('version').then(() => true, () => false); // prettier-ignore
    context.skip(!reaches, 'needs a place of this project that every user can read');
  }
  const child = spawn(program, [...words, 'daemon'], { env, cwd: directory, stdio: ['ignore', 'ignore', 'pipe'] });
  daemon = child;
  await new Promise<void>((resolve, reject) => {
    let said = '';
    child.stderr.on('data', (data: Buffer) => {
      said += data.toString();
      if (said.includes('"msg":"ready"')) resolve();
    });
    child.once('exit', (code) => reject(new Error(`the daemon ended with ${code}: ${said}`)));
  });
  const uri = (await run('attach', 'vm.img')).trim();
  const [, image] = (await run('snapshot', 'create', 'vm')).trim().split('\n');
  const io = (...commands: string[]): Promise<unknown> =>
    promisify(execFile)('qemu-io', ['-f', 'raw', ...commands.flatMap((one) => ['-c', one]), uri]);
  await io('write -P 2 0 64k', 'read -P 2 0 64k');
  const { stdout } = await promisify(execFile)('qemu-io', ['-f', 'raw', '-r', '-c', 'read -P 1 0 64k', image!]);
  expect(stdout).not.toMatch(/failed/);
  expect(fs.readFileSync(`/proc/${child.pid}/status`, 'utf8')).toMatch(/^CapEff:\t0{16}$/m);
});
