/** /dev/nbdN of daemons with several I/O threads and with the portable driver; what such a daemon does to itself; block sizes
 *  as the origin has them; and what becomes of a device whose daemon does not come back in time. */

import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { GenericNetlink, textAttribute, u32Attribute, u64Attribute } from '../../../src/kernel/netlink.ts';
import { MIB } from '../../../src/util/units.ts';
import { Machine, sh } from '../machine.ts';
import { QuickDaemon } from '../quick-daemon.ts';

interface Snapshot {
  readonly id: string;
  readonly images: ReadonlyArray<{ readonly kernelDevice: { readonly path: string } }>;
}

const SIZE = 8 * MIB;
/** What is reserved lies in the machine's memory. */
const STORAGE = ['--storage-portion', '16M'];
let daemon: QuickDaemon;
let machine: Machine;

beforeEach(() => {
  daemon = new QuickDaemon();
});
afterEach(() => machine.dispose());

function makeFile(name: string): string {
  const file = daemon.path(name);
  fs.writeFileSync(file, randomBytes(SIZE));
  return file;
}

/** Writes everything in random order, and reads it back. */
function fio(device: string): Promise<string> {
  const job = ['--name=verify', `--filename=${device}`, '--rw=randwrite', '--bsrange=4k-64k', `--size=${SIZE}`];
  const depth = ['--direct=1', '--ioengine=libaio', '--iodepth=16', '--randrepeat=0'];
  return sh('fio', ...job, ...depth, '--verify=crc32c', '--verify_fatal=1', '--verify_state_save=0');
}

test.each([
  ['two I/O threads', ['--io-threads', '2', ...STORAGE]],
  ['the portable driver', ['--io', 'portable', ...STORAGE]],
])('with %s: two disks under load, a snapshot of both, and kill -9', async (_how, options) => {
  machine = await Machine.startWith(daemon, ...options);
  const devices: string[] = [];
  for (const name of ['a', 'b']) devices.push(await machine.attach(makeFile(name), '--name', name, '--dev'));
  const before = await Promise.all(devices.map((device) => machine.sha256(device)));
  const { id, images } = await daemon.json<Snapshot>('snapshot', 'create', 'a', 'b');
  await Promise.all(devices.map(fio));
  const frozen = await Promise.all(images.map(({ kernelDevice }) => machine.sha256(kernelDevice.path)));
  expect(frozen).toEqual(before);
  await daemon.cli('snapshot', 'destroy', id);
  const killed = devices.map(fio);
  await daemon.stop('SIGKILL');
  await daemon.start(...options);
  await Promise.all(killed);
  for (const [index, name] of ['a', 'b'].entries()) {
    const shown = await machine.sha256(devices[index]!);
    await daemon.cli('detach', name);
    expect(await machine.sha256(daemon.path(name))).toBe(shown);
  }
});

test('is in the write path of its machine: locked, never waiting for writes itself, the last to be ended', async () => {
  machine = await Machine.startWith(daemon, '--io-threads', '2');
  const { pid } = await daemon.json<{ pid: number }>('status');
  const read = (name: string): string => fs.readFileSync(`/proc/${pid}/${name}`, 'utf8').trim();
  expect(read('oom_score_adj')).toBe('0');
  await machine.attach(makeFile('disk'), '--dev');
  expect(read('oom_score_adj')).toBe('-1000');
  expect(Number(/^VmLck:\s+(\d+) kB$/m.exec(read('status'))?.[1])).toBeGreaterThan(50_000);
  const flags = fs.readdirSync(`/proc/${pid}/task`).map((task) => {
    const stat = read(`task/${task}/stat`);
    return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[6]);
  });
  // PF_MEMALLOC_NOIO: the I/O threads, and what they have started.
  expect(flags.filter((one) => (one & 0x8_0000) !== 0).length).toBeGreaterThanOrEqual(2);
});

test.each([512, 4096])('blocks of %d bytes, as the origin has', async (bytes) => {
  machine = await Machine.startWith(daemon);
  await sh('modprobe', 'loop');
  const words = ['--find', '--show', '--sector-size', String(bytes), makeFile('origin')];
  const loop = (await sh('losetup', ...words)).trim();
  const device = await machine.attach(loop, '--name', 'data');
  const queue = (name: string): string =>
    fs.readFileSync(`/sys/block/${path.basename(device)}/queue/${name}`, 'utf8').trim();
  expect([queue('logical_block_size'), queue('physical_block_size')]).toEqual([String(bytes), String(bytes)]);
  const write = sh('dd', 'if=/dev/zero', `of=${device}`, 'bs=512', 'count=1', 'oflag=direct', 'status=none');
  if (bytes === 512) await write;
  else await expect(write).rejects.toThrow(/Invalid argument/);
  await daemon.cli('detach', 'data');
  await sh('losetup', '--detach', loop);
});

// linux/nbd-netlink.h
const RECONFIGURE = 3;
const INDEX = 1;
const DEAD_CONNECTION_TIMEOUT = 8;
const BACKEND = 10;

function waitAtMost(device: string, seconds: number): void {
  const name = path.basename(device);
  const backend = fs.readFileSync(`/sys/block/${name}/backend`, 'utf8').trim();
  const netlink = GenericNetlink.open('nbd');
  netlink.ask(RECONFIGURE, [
    u32Attribute(INDEX, Number(name.slice('nbd'.length))),
    u64Attribute(DEAD_CONNECTION_TIMEOUT, seconds),
    textAttribute(BACKEND, backend),
  ]);
  netlink.close();
}

test('requests fail when no daemon comes in time; one that comes later serves the device again', async () => {
  machine = await Machine.startWith(daemon);
  const device = await machine.attach(makeFile('late'), '--name', 'late', '--dev');
  const read = (): Promise<string> =>
    sh('dd', `if=${device}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct', 'status=none');
  await read();
  waitAtMost(device, 2);
  await daemon.stop('SIGKILL');
  await expect(read()).rejects.toThrow(/Input\/output error/);
  await daemon.start();
  expect(await daemon.json('list')).toMatchObject({ disks: [{ kernelDevice: { path: device, failure: null } }] });
  await read();
  await daemon.cli('detach', 'late');
});
