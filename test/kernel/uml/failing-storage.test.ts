/** Storage of a snapshot that begins to fail, for real: device-mapper's error and flakey targets under it, and ours; a loop
 *  device whose backing file finds no more space; a device that is pulled out (which a loop device in use cannot be). What was
 *  stored is lost on its way from the page cache to the device, long after the write that stored it: the snapshot is lost
 *  and says why, its image never shows what is not so, and its origin notices nothing. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { Client } from '../../../src/api/client.ts';
import { Embedded } from '../../../src/index.ts';
import { KIB, MIB } from '../../../src/util/units.ts';
import { fill } from '../../daemon/world.ts';
import { DaemonUnderTest } from '../../system/daemon-under-test.ts';
import { SmallPlace } from '../../system/small-place.ts';
import { Machine, sh } from '../machine.ts';

const STORE = '/dev/mapper/store';
const SECTORS = (128 * MIB) / 512;
const GOOD = `0 ${SECTORS} linear 1:1 0`;
const DISK_BYTES = 64 * MIB;

let machine: Machine;
let client: Client;
let uri: string;
const undo: Array<() => void> = [];

beforeAll(async () => {
  machine = await Machine.start();
  client = new Client({ dir: machine.daemon.state });
  for (const module of ['dm-mod', 'dm-flakey', 'loop']) await sh('modprobe', module);
  execFileSync('dmsetup', ['create', 'store', '--table', GOOD]);
  execFileSync('dmsetup', ['mknodes']);
  await machine.daemon.disk('data', DISK_BYTES);
  uri = machine.daemon.uri('data');
});
afterEach(() => {
  for (const step of undo.splice(0).toReversed()) step();
});
afterAll(async () => {
  await machine.dispose();
  execFileSync('dmsetup', ['remove', '--force', 'store']);
});

function swapTable(table: string): void {
  execFileSync('dmsetup', ['suspend', '--nolockfs', 'store']);
  execFileSync('dmsetup', ['load', 'store', '--table', table]);
  execFileSync('dmsetup', ['resume', 'store']);
}

async function read(exportUri: string, offset: number): Promise<Buffer> {
  const embedded = await Embedded.open({ driver: 'portable' });
  try {
    return Buffer.from(await (await embedded.openExport(exportUri)).read(offset, 64 * KIB));
  } finally {
    await embedded.close();
  }
}

/** Has the kernel write back what it has, and forget it. */
async function dropCaches(): Promise<void> {
  await sh('sync');
  fs.writeFileSync('/proc/sys/vm/drop_caches', '3');
}

/** Takes a snapshot stored at `place`, writes, and has the place fail. */
async function failUnder(place: string, fail: () => unknown, notice: (image: string) => Promise<void>): Promise<void> {
  await fill(uri, 0, DISK_BYTES, 1);
  const { id } = await client.createSnapshot({ disks: ['data'], storage: place });
  const image = machine.daemon.uri(`data@${id}`);
  await fill(uri, 0, 8 * MIB, 2);
  await dropCaches();
  expect((await read(image, 0)).every((byte) => byte === 1)).toBe(true);
  await fail();
  await fill(uri, 8 * MIB, DISK_BYTES - 16 * MIB, 3);
  await dropCaches();
  await notice(image);
  await expect.poll(async () => (await client.events(id)).map(({ code }) => code)).toContain('corrupted');
  const events = await client.events(id);
  expect(events.find(({ code }) => code === 'corrupted')).toMatchObject({
    disk: 'data',
    error: expect.stringMatching(/^(EIO|ENOSPC)$/),
  });
  await expect(read(image, 8 * MIB)).rejects.toThrow();
  // An error of the origin would throw here.
  await fill(uri, DISK_BYTES - 8 * MIB, 8 * MIB, 4);
  expect((await read(uri, 8 * MIB)).every((byte) => byte === 3)).toBe(true);
  await client.destroySnapshot(id);
}

/** By a reader of the image, who gets no data. */
async function byReading(image: string): Promise<void> {
  await expect(read(image, 16 * MIB)).rejects.toThrow();
}

/** By the next write to the origin. */
async function byStoring(): Promise<void> {
  await fill(uri, DISK_BYTES - 8 * MIB, 64 * KIB, 5);
}

test('a device that fails every request, noticed by a reader', async () => {
  await failUnder(STORE, () => swapTable(`0 ${SECTORS} error`), byReading);
  swapTable(GOOD);
  const { id } = await client.createSnapshot({ disks: ['data'], storage: STORE });
  await fill(uri, 0, MIB, 4);
  expect((await read(machine.daemon.uri(`data@${id}`), 0)).every((byte) => byte === 2)).toBe(true);
  await client.destroySnapshot(id);
});

test('a device whose writes fail, noticed by the next write', async () => {
  await failUnder(STORE, () => swapTable(`0 ${SECTORS} flakey 1:1 0 0 3600 1 error_writes`), byStoring);
  swapTable(GOOD);
});

test('a loop device whose backing file finds no more space, noticed by a reader', async () => {
  const small = new SmallPlace('tmpfs', machine.daemon.path('small'), 16 * MIB);
  undo.push(() => small.umount());
  const file = `${small.path}/backing`;
  fs.writeFileSync(file, '');
  fs.truncateSync(file, 128 * MIB);
  const loop = (await sh('losetup', '--find', '--show', file)).trim();
  undo.push(() => execFileSync('losetup', ['-d', loop]));
  await failUnder(loop, () => small.fill(), byReading);
});

test('a device that is pulled out', async () => {
  const [file, socket, device] = [machine.daemon.path('pulled'), machine.daemon.path('pulled.sock'), '/dev/nbd15'];
  fs.writeFileSync(file, '');
  fs.truncateSync(file, 128 * MIB);
  await sh('modprobe', 'nbd');
  await sh('qemu-nbd', '--fork', '--persistent', '--format=raw', `--socket=${socket}`, file);
  await sh('nbd-client', '-unix', socket, device);
  await failUnder(device, () => execFileSync('nbd-client', ['-d', device]), byReading);
});

test.each([
  { kind: 'error', tableOf: (): string => `0 ${SECTORS} error`, notice: byReading },
  {
    kind: 'flakey',
    tableOf: (file: string): string => `0 ${SECTORS} flakey ${file} 0 0 3600 1 error_writes`,
    notice: byStoring,
  },
])('a mapped device of another daemon, whose target is $kind then', async ({ tableOf, notice }) => {
  const other = new DaemonUnderTest();
  const device = '/dev/nbd14';
  try {
    await other.start();
    const file = other.path('backing');
    fs.writeFileSync(file, '');
    fs.truncateSync(file, 128 * MIB);
    await other.cli('dm', 'create', 'store', '--table', `0 ${SECTORS} linear ${file} 0`);
    await sh('nbd-client', '-unix', `${other.state}/nbd.sock`, '-N', 'store', device);
    const fail = async (): Promise<void> => {
      await other.cli('dm', 'load', 'store', '--table', tableOf(file));
      await other.cli('dm', 'resume', 'store');
    };
    await failUnder(device, fail, notice);
  } finally {
    await sh('nbd-client', '-d', device);
    await other.dispose();
  }
});
