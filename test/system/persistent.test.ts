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
    await daemon.start('--io-threads', String(threads));
    const a = await daemon.disk('a', SIZE);
    const b = await daemon.disk('b', SIZE);
    const was = new Map([
      ['a', sha256Of(a)],
      ['b', sha256Of(b)],
    ]);
    for (const disks of [['a', 'b'], ['a'], ['b']]) await daemon.cli('snapshot', 'create', ...disks, '--persistent');
    for (let round = 0; round < 3; round++) {
      const loads = ['a', 'b'].map(load);
      const before = fs.statSync(a).mtimeMs;
      await expect.poll(() => fs.statSync(a).mtimeMs).toBeGreaterThan(before + 200 * (round + 1));
      await daemon.stop('SIGKILL');
      await Promise.all(loads.map(({ ended }) => ended));
      // Once with the other number of threads.
      await daemon.start('--io-threads', String(round === 1 ? 3 - threads : threads));
      const snapshots = await shown();
      expect(snapshots.map(({ failure }) => failure)).toEqual([null, null, null]);
      expect(snapshots.map(({ images }) => images.map(({ disk }) => disk))).toEqual([['a', 'b'], ['a'], ['b']]);
      for (const { images } of snapshots) {
        for (const { disk, uri } of images) expect([disk, await sha256(uri)]).toEqual([disk, was.get(disk)]);
      }
    }
    expect(sha256Of(a)).not.toBe(was.get('a'));
    for (const { id } of await shown()) await daemon.cli('snapshot', 'destroy', id);
    expect(fs.readdirSync(path.join(daemon.state, 'snapshots'))).toEqual([]);
  },
);

test.for([1, 2])('two disks come back together, or are refused together (%i I/O threads)', async (threads, context) => {
  requirePrograms(context, 'nbdcopy');
  const options = ['--io-threads', String(threads)];
  await daemon.start(...options);
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
  await daemon.start(...options);
  const [back] = await shown();
  expect(back).toMatchObject({ id, persistent: true, failure: null });
  expect(await sha256(back!.images[0]!.uri)).toBe(was);
  await expect(daemon.cli('detach', 'a')).rejects.toThrow(/snapshot .* is held/);

  await daemon.stop();
  fs.writeSync(fs.openSync(file, 'r+'), 'x');
  await daemon.start(...options);
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

test('of disks on two threads: refused while one of its journals is missing, and back when that is there again', async (context) => {
  requirePrograms(context, 'nbdcopy', 'qemu-io');
  const options = ['--io-threads', '2'];
  await daemon.start(...options);
  const files = [await daemon.disk('a', MIB), await daemon.disk('b', MIB)];
  const was = files.map(sha256Of);
  const place = path.join(daemon.directory, 'place');
  fs.mkdirSync(place);
  const { id } = await daemon.json<Shown>('snapshot', 'create', 'a', 'b', '--persistent', '--storage', place);
  await daemon.cli('snapshot', 'append', id, '--storage', place, '--limit', '1M');
  for (const disk of ['a', 'b']) await run('qemu-io', ['-f', 'raw', '-c', 'write -P 7 0 512k', daemon.uri(disk)]);
  const heldMs = (await shown()).map((one) => (one as unknown as { heldMs: number }).heldMs);
  const journals = path.join(daemon.state, 'snapshots');
  const [first, ...others] = fs.readdirSync(journals);
  expect(others).toHaveLength(1);
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    await daemon.stop(signal);
    fs.renameSync(path.join(journals, first!), path.join(daemon.directory, first!));
    await daemon.start(...options);
    const [refused, ...more] = await shown();
    expect(more).toEqual([]);
    expect(refused).toMatchObject({ id, images: [], failure: { code: 'ESTALE' } });
    expect(refused!.failure!.message).toMatch(/its journal .* is missing/);

    await daemon.stop(signal);
    fs.renameSync(path.join(daemon.directory, first!), path.join(journals, first!));
    await daemon.start(...options);
    const [back] = await shown();
    expect(back).toMatchObject({ id, failure: null });
    expect((back as unknown as { heldMs: number }).heldMs).toBe(heldMs[0]);
    expect(await Promise.all(back!.images.map(({ uri }) => sha256(uri)))).toEqual(was);
  }

  // What was let go again does not come back after a write that was not copied for it.
  const found = fs.readFileSync(path.join(journals, first!)).includes('"disks":[{"name":"a"') ? 'b' : 'a';
  await daemon.stop();
  fs.renameSync(path.join(journals, first!), path.join(daemon.directory, first!));
  await daemon.start(...options);
  await run('qemu-io', ['-f', 'raw', '-c', 'write -P 8 512k 4k', daemon.uri(found)]);
  await daemon.stop();
  fs.renameSync(path.join(daemon.directory, first!), path.join(journals, first!));
  await daemon.start(...options);
  expect((await shown())[0]!.failure!.message).toMatch(
    new RegExp(`disk "${found}" was written while the snapshot got no copies`),
  );
  await daemon.cli('snapshot', 'destroy', id);
  expect([...fs.readdirSync(journals), ...fs.readdirSync(place)]).toEqual([]);
});

test('with a lease, or in memory, it is not taken', async () => {
  await daemon.start('--io-threads', '2');
  await daemon.disk('a', MIB);
  const create = (...words: string[]): Promise<string> => daemon.cli('snapshot', 'create', ...words, '--persistent');
  await expect(create('a', '--storage', ':memory:')).rejects.toThrow(/memory ends with the daemon/);
  const client = new Client({ dir: daemon.state });
  await expect(client.createSnapshot({ disks: ['a'], persistent: true, leaseMs: 1000 })).rejects.toThrow(/lease/);
  expect(await shown()).toEqual([]);
});
