/** Partitions of a served disk, as its clients meet them: a real daemon, real tables, real NBD. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { pino } from 'pino';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { requirePrograms } from '../../test/requirements.ts';
import { BioPool, READ, WRITE, runBio } from '../block/bio.ts';
import { Daemon } from '../daemon/daemon.ts';
import { daemonPaths } from '../daemon/paths.ts';
import { openReactor } from '../io/open.ts';
import type { Reactor } from '../io/reactor.ts';
import { NbdClient } from '../nbd/client.ts';
import { parseNbdUri } from '../nbd/uri.ts';
import { MIB } from '../util/units.ts';
import { Client } from './client.ts';
import { serveApi } from './server.ts';
import type { ApiServer } from './server.ts';

const log = pino({ level: 'silent' });
const BLOCK = 65_536;
let directory: string;
let daemon: Daemon;
let api: ApiServer;
let client: Client;
let reactor: Reactor;
const pool = new BioPool();

beforeEach(async () => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-partitions-'));
  reactor = await openReactor({ arenaBytes: 4 * MIB, cooperative: true });
  await start();
});
afterEach(async () => {
  await stop();
  expect(reactor.arena.lentBytes + pool.lent).toBe(0);
  await reactor.close();
  fs.rmSync(directory, { recursive: true });
});

async function start(): Promise<void> {
  const paths = daemonPaths(directory);
  const onFatal = (cause: Error): void => {
    throw cause;
  };
  daemon = await Daemon.start({ paths, nbd: null, driver: null, log, onFatal });
  api = await serveApi(paths.apiSocket, daemon, log);
  client = new Client({ dir: directory });
}
async function stop(): Promise<void> {
  await api.close();
  await daemon.stop();
}

/** Two partitions of a MiB each; the second does not lie on a tracking block. */
const TABLE = 'label: gpt\nstart=2048,size=2048,name=one\nstart=5000,size=2048,name=two\n';
const ONE = 2048 * 512;
const TWO = 5000 * 512;

function partition(file: string, table: string): void {
  execFileSync('sfdisk', ['--no-reread', '--no-tell-kernel', '--lock=no', file], {
    input: table,
    stdio: ['pipe', 'ignore', 'pipe'],
  });
}

function makeDisk(name: string): string {
  const file = path.join(directory, name);
  fs.writeFileSync(file, '');
  fs.truncateSync(file, 8 * MIB);
  partition(file, TABLE);
  return file;
}

async function withExport<T>(
  uri: string,
  task: (device: NbdClient) => Promise<T>,
  contexts: readonly string[] = [],
): Promise<T> {
  const { address, exportName } = parseNbdUri(uri);
  const device = await NbdClient.connect({ reactor, address, exportName, contexts });
  try {
    return await task(device);
  } finally {
    await device.close();
  }
}

async function write(uri: string, offset: number, value: number, length = 4096): Promise<void> {
  await withExport(uri, async (device) => {
    const at = reactor.arena.allocate(length);
    reactor.arena.bytes.fill(value, at, at + length);
    expect(await runBio(pool, device, { op: WRITE, offset, length, at })).toBe(0);
    reactor.arena.release(at);
  });
}

/** The value of the bytes there, all of which must be the same. */
async function valueAt(uri: string, offset: number, length = 4096): Promise<number> {
  return await withExport(uri, async (device) => {
    const at = reactor.arena.allocate(length);
    expect(await runBio(pool, device, { op: READ, offset, length, at })).toBe(0);
    const values = new Set(reactor.arena.bytes.subarray(at, at + length));
    reactor.arena.release(at);
    expect(values.size).toBe(1);
    return [...values][0]!;
  });
}

const uriOf = async (name: string): Promise<string> => (await client.disk(name)).uri;

it('are disks of their own, with their places', async (context) => {
  requirePrograms(context, 'sfdisk');
  const file = makeDisk('vm.img');
  const whole = await client.attach({ path: file });
  expect(whole.partitionTable).toEqual({ scheme: 'gpt', warnings: [] });
  const [, one, two, ...more] = await client.disks();
  expect(more).toEqual([]);
  expect(one).toMatchObject({
    name: 'vm/1',
    kind: 'partition',
    size: MIB,
    partition: { disk: 'vm', number: 1, offset: ONE, label: 'one' },
  });
  expect(two).toMatchObject({ name: 'vm/2', cbt: { size: MIB, blockSize: BLOCK, blockCount: 16 }, copies: null });
  await expect(client.disk('vm/3')).rejects.toMatchObject({ code: 'ENOENT' });
  await expect(client.detach('vm/1')).rejects.toMatchObject({ code: 'EINVAL', message: /detach disk "vm"/ });
  await client.detach('vm');
  expect(await client.disks()).toEqual([]);
});

it('a write through either is tracked by both', async (context) => {
  requirePrograms(context, 'sfdisk');
  const { uri } = await client.attach({ path: makeDisk('vm.img') });
  const marked = async (name: string): Promise<number[]> =>
    [...(await client.cbtMap(name)).entries()].filter(([, number]) => number > 0).map(([block]) => block);
  await write(await uriOf('vm/1'), 3 * BLOCK, 7);
  expect(await valueAt(uri, ONE + 3 * BLOCK)).toBe(7);
  expect([await marked('vm'), await marked('vm/1'), await marked('vm/2')]).toEqual([[16 + 3], [3], []]);

  // The disk's block 40 reaches into the blocks 0 and 1 of the second partition, which begins in the disk's block 39.
  await write(uri, 40 * BLOCK, 8);
  expect(Math.floor(TWO / BLOCK)).toBe(39);
  expect(await valueAt(await uriOf('vm/2'), 40 * BLOCK - TWO)).toBe(8);
  expect([await marked('vm'), await marked('vm/1'), await marked('vm/2')]).toEqual([[19, 40], [3], [0, 1]]);

  await client.markDirty('vm/2', { ranges: [{ offset: MIB - 512, length: 512 }] });
  expect(await marked('vm')).toEqual([19, 40, Math.floor((TWO + MIB - 1) / BLOCK)]);
  await expect(client.markDirty('vm/2', { ranges: [{ offset: MIB, length: 512 }] })).rejects.toMatchObject({
    code: 'EINVAL',
  });
});

it('the map is as of the newest take while a snapshot is held, and as of now after it', async (context) => {
  requirePrograms(context, 'sfdisk');
  await client.attach({ path: makeDisk('vm.img') });
  const numbers = async (name: string): Promise<number[][]> =>
    [...(await client.cbtMap(name)).entries()].filter(([, number]) => number > 0);
  const maps = async (): Promise<number[][][]> => [await numbers('vm'), await numbers('vm/1')];
  const one = await uriOf('vm/1');
  await write(one, 3 * BLOCK, 7);
  const atFirst = [[[16 + 3, 1]], [[3, 1]]];
  expect(await maps()).toEqual(atFirst);

  const first = await client.createSnapshot({ disks: ['vm'], storage: ':memory:' });
  await write(one, 3 * BLOCK, 8);
  await write(one, 5 * BLOCK, 8);
  expect(await maps()).toEqual(atFirst);
  const second = await client.createSnapshot({ disks: ['vm/1'], storage: ':memory:' });
  const written = [3, 5].map((block) => [block, 2]);
  const atSecond = [written.map(([block, number]) => [16 + block!, number]), written];
  await write(one, 7 * BLOCK, 9);
  expect(await maps()).toEqual(atSecond);

  await client.destroySnapshot(second.id);
  expect(await maps()).toEqual(atFirst);
  await client.destroySnapshot(first.id);
  const [whole, part] = await maps();
  expect([whole!.at(-1), part!.at(-1)]).toEqual([
    [16 + 7, 3],
    [7, 3],
  ]);
  expect([whole!.slice(0, -1), part!.slice(0, -1)]).toEqual(atSecond);
});

it('a snapshot of either keeps what is overwritten through the other', async (context) => {
  requirePrograms(context, 'sfdisk');
  const { uri } = await client.attach({ path: makeDisk('vm.img') });
  const two = await uriOf('vm/2');
  await write(two, 0, 1);
  await write(await uriOf('vm/1'), 0, 2);
  const storage = ':memory:';
  const snapshot = await client.createSnapshot({ disks: ['vm', 'vm/2', 'vm/1'], storage });
  expect(snapshot.images.map(({ disk, size }) => [disk, size])).toEqual([
    ['vm', 8 * MIB],
    ['vm/2', MIB],
    ['vm/1', MIB],
  ]);
  const [whole, second, first] = snapshot.images.map((image) => image.uri);
  await write(two, 0, 3);
  await write(uri, ONE, 4);
  expect([await valueAt(whole!, TWO), await valueAt(second!, 0), await valueAt(two, 0)]).toEqual([1, 1, 3]);
  expect([await valueAt(whole!, ONE), await valueAt(first!, 0), await valueAt(uri, ONE)]).toEqual([2, 2, 4]);
  await expect(client.detach('vm')).rejects.toMatchObject({ code: 'EBUSY' });

  const alone = await client.createSnapshot({ disks: ['vm/2'], storage });
  await write(uri, TWO, 5);
  expect([await valueAt(alone.images[0]!.uri, 0), await valueAt(two, 0)]).toEqual([3, 5]);
  await client.destroySnapshot(snapshot.id);
  expect(await valueAt(alone.images[0]!.uri, 0)).toBe(3);
  await client.destroySnapshot(alone.id);
  await client.detach('vm');
});

it('what changed since a snapshot is told of a partition alone, in a history that is bound to its place', async (context) => {
  requirePrograms(context, 'sfdisk');
  const file = makeDisk('vm.img');
  const { uri, cbt } = await client.attach({ path: file });
  const take = (): ReturnType<Client['createSnapshot']> =>
    client.createSnapshot({ disks: ['vm/2'], storage: ':memory:' });
  const first = await take();
  await client.destroySnapshot(first.id);
  await write(uri, BLOCK, 1);
  await write(await uriOf('vm/2'), 5 * BLOCK, 1);
  const second = await take();
  const [image] = second.images;
  expect([image!.generationId, image!.changeNumber]).toEqual([first.images[0]!.generationId, 2]);
  expect(image!.generationId).not.toBe(cbt!.generationId);
  const context2 = `blksnap:changed:${image!.generationId}:1`;
  await withExport(
    image!.uri,
    async (device) => {
      expect(device.contexts).toContain(context2);
      const runs = await device.blockStatus(context2, 0, MIB);
      const before = runs[0]!.length;
      expect(runs.map(({ flags }) => flags)).toEqual([0, 1, 0]);
      expect(before).toBeLessThanOrEqual(5 * BLOCK);
      expect(before + runs[1]!.length).toBeGreaterThanOrEqual(5 * BLOCK + 4096);
    },
    [context2],
  );
  await client.destroySnapshot(second.id);
  const before = (await client.disk('vm/2')).cbt!.generationId;
  await stop();
  await start();
  expect((await client.disk('vm/2')).cbt!.generationId).toBe(before);
});

it('a new table is taken over when asked, and what stays where it is stays in use', async (context) => {
  requirePrograms(context, 'sfdisk');
  const file = makeDisk('vm.img');
  await client.attach({ path: file });
  const before = await client.disks();
  const { address, exportName } = parseNbdUri(await uriOf('vm/1'));
  const user = await NbdClient.connect({ reactor, address, exportName, contexts: [] });
  // Written by another program while we serve the disk, as a guest does it through us.
  const other = makeDisk('other.img');
  partition(other, TABLE.replace('start=5000', 'start=6000'));
  const table = fs.readFileSync(other);
  await withExport(before[0]!.uri, async (device) => {
    const at = reactor.arena.allocate(MIB);
    reactor.arena.bytes.set(table.subarray(0, MIB), at);
    expect(await runBio(pool, device, { op: WRITE, offset: 0, length: MIB, at })).toBe(0);
    reactor.arena.release(at);
  });
  const [, one, two] = await client.rescan('vm');
  expect([one!.partition!.offset, two!.partition!.offset]).toEqual([ONE, 6000 * 512]);
  expect(two!.cbt!.generationId).not.toBe(before[2]!.cbt!.generationId);
  expect(one!.cbt!.generationId).toBe(before[1]!.cbt!.generationId);
  expect(await runBio(pool, user, { op: READ, offset: 0, length: 512, at: 0 })).toBe(0);
  await user.close();
  await withExport(before[0]!.uri, async (device) => {
    const at = reactor.arena.allocate(MIB);
    reactor.arena.bytes.fill(0, at, at + MIB);
    expect(await runBio(pool, device, { op: WRITE, offset: 0, length: MIB, at })).toBe(0);
    reactor.arena.release(at);
  });
  expect((await client.rescan('vm')).length).toBe(1);
});
