/** `blksnap serve`: one disk over NBD in one process, in every way that clients may come. */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MIB } from '../../src/util/units.ts';
import { requirePrograms, requirePythonNbd } from '../requirements.ts';
import { DaemonWorld, Program, fill } from './world.ts';

const BLKSNAP = path.join(import.meta.dirname, '../../bin/blksnap');

let world: DaemonWorld;
let image: string;
let server: Program | null;

beforeEach(() => {
  world = new DaemonWorld();
  image = world.image('disk.img', 4 * MIB);
  server = null;
});
afterEach(async () => {
  await server?.signal('SIGKILL');
  await world.close();
});

/** Starts a server, and resolves with its URI. */
async function serve(...args: readonly string[]): Promise<string> {
  server = new Program(['serve', image, ...args]);
  while (server.running && !server.stdout.includes('\n')) await sleep(5);
  if (server.stdout === '') throw new Error(`no server: ${server.stderr}`);
  return server.stdout.trim();
}

describe.each(['uring', 'portable'])('serve on the %s driver', (io) => {
  it('takes clients on a unix socket until it is interrupted', async () => {
    const socket = world.file('s.sock');
    const uri = await serve('--socket', socket, '--io', io);
    expect(uri).toBe(`nbd+unix:///?socket=${socket}`);
    await fill(uri, 0, MIB, 7);
    expect(fs.readFileSync(image).subarray(MIB - 1, MIB + 1)).toEqual(Buffer.from([7, 0]));
    const { code, stderr } = await server!.signal('SIGINT');
    expect([code, stderr, fs.existsSync(socket)]).toEqual([0, '', false]);
  });

  it('takes one client on standard input and output', (context) => {
    requirePythonNbd(context);
    const script = `import nbd; h = nbd.NBD(); h.connect_command(["${process.execPath}", "${BLKSNAP}", "serve", "${image}", "--stdio", "--io", "${io}"])
h.pwrite(b"x" * 512, 1024); h.flush(); print(h.get_size(), h.pread(512, 1024)[:2]); h.shutdown()`;
    const { stdout, stderr, status } = spawnSync('/usr/bin/python3', ['-c', script], { encoding: 'utf8' });
    expect([stdout, stderr, status]).toEqual([`${4 * MIB} bytearray(b'xx')\n`, '', 0]);
  });
});

it('takes clients by systemd socket activation', (context) => {
  requirePrograms(context, 'nbdinfo');
  const command = ['--size', '--', '[', process.execPath, BLKSNAP, 'serve', image, ']'];
  const { stdout, stderr, status } = spawnSync('nbdinfo', command, { encoding: 'utf8' });
  expect([stdout.trim(), stderr, status]).toEqual([String(4 * MIB), '', 0]);
});

it('takes clients over TCP, under a name or none, and refuses writes when told so', async () => {
  const uri = await serve('--listen', '127.0.0.1:0', '--name', 'disk', '--read-only');
  expect(uri).toMatch(/^nbd:\/\/127\.0\.0\.1:\d+\/disk$/);
  await expect(fill(uri, 0, 512, 1)).rejects.toThrow(/errno 1$/);
  await expect(fill(uri.replace(/disk$/, ''), 0, 512, 1)).rejects.toThrow(/errno 1$/);
  await expect(fill(uri.replace(/disk$/, 'other'), 0, 512, 1)).rejects.toMatchObject({ code: 'ENOENT' });
});

it('says what is wrong with the disk', async () => {
  const args = ['--socket', world.file('s.sock')];
  expect((await world.cli('serve', world.file('none.img'), ...args)).code).toBe(5);
  const odd = world.image('odd.img', 1000);
  expect(await world.cli('serve', odd, ...args)).toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/1000 is not a multiple of 512/),
  });
});
