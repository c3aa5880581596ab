/** Filters on partitions and mapped devices: there again after a restart and a new partition table, or what they guard is
 *  not served. The guard is the example that lets every block be written once. */

import { execFile, execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Client } from '../../src/api/client.ts';
import { MIB } from '../../src/util/units.ts';
import { requirePrograms } from '../requirements.ts';
import { DaemonUnderTest } from './daemon-under-test.ts';

const GUARD = ['--filter-module', path.join(import.meta.dirname, '../../examples/write-once.mjs')];
const ONE = 'label: gpt\nstart=2048,size=2048\n';
const TWO = `${ONE}start=8192,size=2048\n`;
let daemon: DaemonUnderTest;
let client: Client;

beforeEach(() => {
  daemon = new DaemonUnderTest();
  client = new Client({ dir: daemon.state });
});
afterEach(() => daemon.dispose());

function partition(file: string, table: string): void {
  const options = { input: table, stdio: ['pipe', 'ignore', 'pipe'] as ['pipe', 'ignore', 'pipe'] };
  execFileSync('sfdisk', ['--no-reread', '--no-tell-kernel', '--lock=no', file], options);
}

function image(name: string, table: string | null): string {
  const file = daemon.path(name);
  fs.writeFileSync(file, '');
  fs.truncateSync(file, 16 * MIB);
  if (table !== null) partition(file, table);
  return file;
}

/** Whether a write of one value is taken. */
async function takes(disk: string, value: number): Promise<boolean> {
  const words = ['-f', 'raw', '-c', `write -P ${value} 0 64k`, daemon.uri(disk)];
  const { stdout, stderr } = await promisify(execFile)('qemu-io', words).catch(
    (cause: unknown) => cause as { stdout: string; stderr: string },
  );
  const refused = /write failed: Operation not permitted/.test(stdout + stderr);
  if (!refused) expect(stdout).toMatch(/wrote 65536\/65536/);
  return !refused;
}

const filtersOf = async (disk: string): Promise<string[]> => (await client.disk(disk)).filters;

test('they are there again after a restart, and the disks fail without them', async (context) => {
  requirePrograms(context, 'qemu-io', 'sfdisk');
  await daemon.start(...GUARD);
  await client.attach({ path: image('vm.img', TWO), name: 'vm' });
  const backing = image('backing.img', TWO);
  await client.createMapped({ name: 'm', table: `0 32768 linear ${backing} 0` });
  for (const name of ['vm/2', 'm', 'm/1']) await client.attachFilter(name, 'write-once');
  expect(await filtersOf('vm')).toEqual(['blksnap']);
  for (const name of ['vm/2', 'm/1']) expect(await takes(name, 1)).toBe(true);
  await daemon.stop('SIGKILL');

  await daemon.start(...GUARD);
  expect(await Promise.all(['vm', 'vm/1', 'vm/2', 'm', 'm/1', 'm/2'].map(filtersOf))).toEqual([
    ['blksnap'],
    [],
    ['write-once'],
    ['write-once', 'blksnap'],
    ['write-once'],
    [],
  ]);
  expect(await Promise.all(['vm/1', 'vm/2', 'm/1'].map((name) => takes(name, 2)))).toEqual([true, false, false]);
  await daemon.stop();

  // A guard that is gone in silence is none.
  await daemon.start();
  const failed = { state: 'failed', failure: { message: expect.stringContaining('No filter "write-once"') as string } };
  expect(await client.disks()).toMatchObject([{ name: 'm', ...failed }, { name: 'vm', ...failed }]); // prettier-ignore
  for (const name of ['vm/2', 'm', 'm/1']) await client.detachFilter(name, 'write-once');
  // What is written anew now still has the table of the one that failed.
  await client.createMapped({ name: 'other', table: '0 8 zero' });
  await client.removeMapped('other');
  await daemon.stop();
  await daemon.start();
  expect((await client.disks()).map(({ name, state }) => `${name} ${state}`)).toEqual(
    ['m', 'm/1', 'm/2', 'vm', 'vm/1', 'vm/2'].map((name) => `${name} attached`),
  );
  expect(await takes('m/1', 2)).toBe(true);
});

test('a partition that is made anew, or elsewhere, has them, and one that is gone lets them be taken off', async (context) => {
  requirePrograms(context, 'qemu-io', 'sfdisk');
  await daemon.start(...GUARD);
  const file = image('vm.img', TWO);
  await client.attach({ path: file, name: 'vm' });
  await client.attachFilter('vm/2', 'write-once');
  const rescan = async (table: string): Promise<string[]> => {
    partition(file, table);
    return (await client.rescan('vm')).map(({ name }) => name);
  };
  expect(await rescan(ONE)).toEqual(['vm', 'vm/1']);
  expect(await rescan(TWO.replace('8192', '12288'))).toEqual(['vm', 'vm/1', 'vm/2']);
  expect(await filtersOf('vm/2')).toEqual(['write-once']);
  expect([await takes('vm/2', 1), await takes('vm/2', 2)]).toEqual([true, false]);
  await rescan(ONE);
  await expect(client.detachFilter('vm/2', 'none')).rejects.toMatchObject({ code: 'ENOENT' });
  await client.detachFilter('vm/2', 'write-once');
  await rescan(TWO);
  expect(await filtersOf('vm/2')).toEqual([]);
  await client.detach('vm');
  expect(JSON.parse(fs.readFileSync(path.join(daemon.state, 'state.json'), 'utf8'))).toEqual({
    version: 1,
    disks: [],
    mapped: [],
  });
});
