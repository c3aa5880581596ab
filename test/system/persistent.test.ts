/** Persistent snapshots of a real daemon: over restarts, over kill -9 in the middle of a real client's load, and
 *  refused when somebody else has written to the disk. */

import { execFile } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Client } from '../../src/api/client.ts';
import { MIB } from '../../src/util/units.ts';
import { requirePrograms } from '../requirements.ts';
import { DaemonUnderTest, fio } from './daemon-under-test.ts';

const run = promisify(execFile);
const SIZE = 64 * MIB;
let daemon: DaemonUnderTest;

beforeEach(() => {
  daemon = new DaemonUnderTest();
});
afterEach(() => daemon.dispose());

interface Shown {
  readonly id: string;
  readonly persistent: boolean;
  readonly failure: { readonly code: string; readonly message: string } | null;
  readonly images: ReadonlyArray<{ readonly disk: string; readonly uri: string; readonly error: string | null }>;
}

async function sha256(uri: string): Promise<string> {
  const { stdout } = await run('nbdcopy', [uri, '-'], { maxBuffer: 4 * SIZE, encoding: 'buffer' });
  return crypto.createHash('sha256').update(stdout).digest('hex');
}

function sha256Of(file: string): string {
  return crypto.createHash('sha256').update(fs.readFileSync(file)).digest('hex');
}

async function shown(): Promise<Shown[]> {
  return (await daemon.json<{ snapshots: Shown[] }>('snapshot', 'list')).snapshots;
}

/** Random writes and discards of 4 to 64 KiB, until the daemon is gone. */
function load(disk: string): ReturnType<typeof fio> {
  return fio(
    daemon.uri(disk),
    '--rw=randwrite', '--bsrange=4k-64k', '--iodepth=16', `--size=${SIZE}`, '--time_based', '--runtime=60',
    '--randrepeat=0',
  ); // prettier-ignore
}

test.for([1, 2])(
  'kill -9 under load, again and again: every image is as it was (%i I/O threads)',
  async (threads, context) => {
    requirePrograms(context, 'fio', 'nbdcopy');
    const options = ['--io-threads', String(threads)];
    await daemon.start(...options);
    const a = await daemon.disk('a', SIZE);
    const b = await daemon.disk('b', SIZE);
    const was = new Map([
      ['a', sha256Of(a)],
      ['b', sha256Of(b)],
    ]);
    for (const disk of ['a', 'b']) await daemon.cli('snapshot', 'create', disk, '--persistent');
    for (let round = 0; round < 3; round++) {
      const loads = ['a', 'b'].map(load);
      const before = fs.statSync(a).mtimeMs;
      await expect.poll(() => fs.statSync(a).mtimeMs, { timeout: 30_000 }).toBeGreaterThan(before + 200 * (round + 1));
      await daemon.stop('SIGKILL');
      await Promise.all(loads.map(({ ended }) => ended));
      await daemon.start(...options);
      const snapshots = await shown();
      expect(snapshots.map(({ failure }) => failure)).toEqual([null, null]);
      for (const { images } of snapshots) {
        for (const { disk, uri } of images) expect([disk, await sha256(uri)]).toEqual([disk, was.get(disk)]);
      }
    }
    expect(sha256Of(a)).not.toBe(was.get('a'));
    for (const { id } of await shown()) await daemon.cli('snapshot', 'destroy', id);
    expect(fs.readdirSync(path.join(daemon.state, 'snapshots'))).toEqual([]);
  },
);

test('two disks come back together, or are refused together with the reason', async (context) => {
  requirePrograms(context, 'nbdcopy');
  await daemon.start();
  const file = await daemon.disk('a', SIZE);
  await daemon.disk('b', SIZE);
  const { id } = await daemon.json<Shown>(
    'snapshot',
    'create',
    'a',
    'b',
    '--persistent',
    '--storage',
    daemon.directory,
  );
  const was = sha256Of(file);
  await daemon.stop();
  await daemon.start();
  const [back] = await shown();
  expect(back).toMatchObject({ id, persistent: true, failure: null });
  expect(await sha256(back!.images[0]!.uri)).toBe(was);
  await expect(daemon.cli('detach', 'a')).rejects.toThrow(/snapshot .* is held/);

  await daemon.stop();
  fs.writeSync(fs.openSync(file, 'r+'), 'x');
  await daemon.start();
  const [refused] = await shown();
  expect(refused).toMatchObject({ id, images: [], failure: { code: 'ESTALE' } });
  expect(refused!.failure!.message).toMatch(/of disk "a": the disk was written while it was not attached/);
  expect(await daemon.cli('snapshot', 'list')).toMatch(/refused \(ESTALE\)[^]*written while it was not attached/);
  expect(await daemon.cli('snapshot', 'show', id)).toMatch(/persistent +refused: /);
  expect(await daemon.cli('snapshot', 'events', id)).toMatch(/image of disk "a" lost: ESTALE/);
  expect(await daemon.cli('status')).toMatch(/snapshots +0, 1 refused/);
  await daemon.cli('detach', 'a');
  await daemon.cli('snapshot', 'destroy', id);
  expect(await shown()).toEqual([]);
  const left = [...fs.readdirSync(path.join(daemon.state, 'snapshots')), ...fs.readdirSync(daemon.directory)];
  expect(left.filter((name) => /journal|diff/.test(name))).toEqual([]);
});

test('with a lease, in memory, or of disks on several threads it is not taken', async () => {
  await daemon.start('--io-threads', '2');
  await daemon.disk('a', MIB);
  await daemon.disk('b', MIB);
  const create = (...words: string[]): Promise<string> => daemon.cli('snapshot', 'create', ...words, '--persistent');
  await expect(create('a', 'b')).rejects.toThrow(/live on several I\/O threads/);
  await expect(create('a', '--storage', ':memory:')).rejects.toThrow(/memory ends with the daemon/);
  const client = new Client({ dir: daemon.state });
  await expect(client.createSnapshot({ disks: ['a'], persistent: true, leaseMs: 1000 })).rejects.toThrow(/lease/);
  expect(await shown()).toEqual([]);
});
