/** A mapped device by the command line alone: made, looked at, suspended under a client's write, given another table, resumed,
 *  removed. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { MIB } from '../../src/util/units.ts';
import { requirePrograms } from '../requirements.ts';
import { DaemonUnderTest } from './daemon-under-test.ts';

const SIZE = 4 * MIB;
let daemon: DaemonUnderTest;

beforeEach(async () => {
  daemon = new DaemonUnderTest();
  await daemon.start();
});
afterEach(() => daemon.dispose());

function file(name: string, value: number): string {
  fs.writeFileSync(daemon.path(name), Buffer.alloc(SIZE, value));
  return daemon.path(name);
}

async function qemuIo(command: string): Promise<string> {
  return (await promisify(execFile)('qemu-io', ['-f', 'raw', '-c', command, daemon.uri('m')])).stdout;
}
const dm = (...words: string[]): Promise<string> => daemon.cli('dm', ...words);

test('is made, looked at, suspended, given another table, resumed and removed', async (context) => {
  requirePrograms(context, 'qemu-io');
  const [one, two] = [file('one', 1), file('two', 2)];
  const table = `0 4096 linear ${one} 0\n4096 4096 linear ${one} 4096\n`;
  fs.writeFileSync(daemon.path('table'), table);
  expect(await dm('create', 'm', '--table-file', daemon.path('table'))).toBe(`${daemon.uri('m')}\n`);
  expect([await dm('table', 'm'), await dm('status', 'm')]).toEqual([table, '0 4096 linear \n4096 4096 linear \n']);
  expect(await dm('ls')).toMatch(/^NAME +SIZE +STATE +TABLES\nm +4\.00 MiB +active +live\n$/);
  expect(await qemuIo('read -P 1 0 4M')).toMatch(/read 4194304\/4194304/);

  expect(await dm('suspend', 'm')).toBe('');
  expect(await dm('ls')).toMatch(/\nm +4\.00 MiB +suspended +live\n$/);
  let written = false;
  const write = qemuIo('write -P 3 0 64k').then((said) => {
    written = true;
    return said;
  });
  await dm('load', 'm', '--table', `0 8192 linear ${two} 0`);
  expect([await dm('table', 'm'), await dm('table', 'm', '--inactive')]).toEqual([table, `0 8192 linear ${two} 0\n`]);
  expect(await dm('ls')).toMatch(/\nm +4\.00 MiB +suspended +live, inactive\n$/);
  await sleep(300);
  expect([written, fs.readFileSync(one)[0]]).toEqual([false, 1]);

  expect(await dm('resume', 'm')).toBe('');
  expect(await write).toMatch(/wrote 65536\/65536/);
  expect([fs.readFileSync(one)[0], fs.readFileSync(two)[0]]).toEqual([1, 3]);
  expect(await qemuIo('read -P 2 64k 3M')).toMatch(/read 3145728\/3145728/);
  expect([await dm('table'), await dm('status'), await dm('table', 'm', '--inactive')]).toEqual([
    `m: 0 8192 linear ${two} 0\n`,
    'm: 0 8192 linear \n',
    '\n',
  ]);

  await expect(dm('load', 'm', '--table', '0 8 zero')).rejects.toMatchObject({ code: 2 });
  await expect(dm('create', 'm', '--table', '0 8 zero')).rejects.toMatchObject({ code: 6 });
  for (const words of [
    ['create', 'n'],
    ['load', 'm'],
  ]) {
    await expect(dm(...words, '--table', '0 8 linear nobody 0')).rejects.toMatchObject({
      code: 5,
      stderr: expect.stringMatching(/No disk "nobody" is served; `blksnap list` shows/),
    });
  }
  expect(await dm('remove', 'm')).toBe('');
  await expect(dm('status', 'm')).rejects.toMatchObject({ code: 5 });
  expect(await dm('status')).toBe('No devices found\n');
  expect(await daemon.json('list')).toEqual({ disks: [] });
});

test('tells programs in JSON', async () => {
  const one = file('one', 1);
  const line = `0 8192 linear ${one} 0`;
  expect(await daemon.json('dm', 'create', 'm', '--table', line)).toMatchObject({ name: 'm', size: SIZE });
  expect(await daemon.json('dm', 'suspend', 'm')).toMatchObject({ name: 'm', suspended: true });
  expect(await daemon.json('dm', 'load', 'm', '--table', '0 8192 zero')).toMatchObject({
    table: [line],
    inactiveTable: ['0 8192 zero '],
  });
  expect(await daemon.json('dm', 'resume', 'm')).toMatchObject({ suspended: false, table: ['0 8192 zero '] });
  const told = { devices: [{ name: 'm', lines: ['0 8192 zero '] }] };
  expect([await daemon.json('dm', 'table'), await daemon.json('dm', 'status', 'm')]).toEqual([told, told]);
  expect(await daemon.json('dm', 'remove', 'm')).toEqual({ removed: 'm' });
});
