import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { DEFAULT_PARAMETERS } from '../blksnap/parameters.ts';
import { BioPool, runBio, WRITE } from '../block/bio.ts';
import { chooseDriver, openReactor } from '../io/open.ts';
import { NbdClient } from '../nbd/client.ts';
import { MIB } from '../util/units.ts';
import { takeAcross } from './barrier-take.ts';
import type { TakePart } from './barrier-take.ts';
import { IoThread } from './io-thread-client.ts';

const { driver } = await chooseDriver();
let directory: string;
let threads: IoThread[];

beforeEach(async () => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-barrier-'));
  const listener = {
    event: () => {},
    died: () => {},
    exportChange: () => {},
    handOver: () => {},
    kernelLeft: () => {},
  };
  const options = { driver, parameters: DEFAULT_PARAMETERS, filterModules: [] };
  threads = [await IoThread.start(options, listener), await IoThread.start(options, listener)];
});
afterEach(async () => {
  for (const thread of threads) await thread.stop();
  fs.rmSync(directory, { recursive: true, force: true });
});

async function attach(thread: IoThread, name: string): Promise<void> {
  const file = path.join(directory, name);
  fs.writeFileSync(file, Buffer.alloc(MIB));
  await thread.call('attach', { name, path: file, readOnly: false, direct: false, cbtPath: null, filters: [] });
}

function parts(id: string, storagePaths = [':memory:', ':memory:']): TakePart[] {
  return threads.map((thread, index) => ({
    thread,
    args: { id, disks: [['d', 'm'][index]!], storagePath: storagePaths[index]!, limitBytes: null },
  }));
}

const held = async (): Promise<number[]> =>
  await Promise.all(threads.map(async (thread) => (await thread.call('snapshots', {})).length));

it('undoes on all threads what fails on one', async () => {
  await attach(threads[0]!, 'd');
  await attach(threads[1]!, 'm');
  const id = crypto.randomUUID();
  const nowhere = path.join(directory, 'nowhere', 'file');
  await expect(takeAcross(parts(id, [':memory:', nowhere]))).rejects.toMatchObject({ code: 'ENOENT' });
  expect(await held()).toEqual([0, 0]);
  const { parts: taken, heldMs } = await takeAcross(parts(id));
  expect(taken.map(({ createdAt }) => createdAt)).toEqual([taken[0]!.createdAt, taken[0]!.createdAt]);
  expect(heldMs).toBeGreaterThan(0);
  expect(await held()).toEqual([1, 1]);
});

it('lets the writes of all threads go when the requests of one do not end in time', async () => {
  const [first, second] = threads as [IoThread, IoThread];
  await attach(first, 'd');
  const backing = path.join(directory, 'backing');
  fs.writeFileSync(backing, Buffer.alloc(MIB));
  await second.call('dmCreate', { name: 'm', table: `0 2048 linear ${backing} 0`, filters: [] });
  await second.call('dmSuspend', { name: 'm' });
  const reactor = await openReactor({ driver: 'portable', arenaBytes: 8 * MIB });
  const pool = new BioPool();
  const connect = async (thread: IoThread, exportName: string): Promise<NbdClient> => {
    const socket = path.join(directory, `${exportName}.sock`);
    const address = await thread.call('listen', { address: { kind: 'unix', path: socket }, clients: 'owner' });
    return await NbdClient.connect({ reactor, address, exportName });
  };
  const [d, m] = [await connect(first, 'd'), await connect(second, 'm')];
  const at = reactor.arena.allocate(4096);
  const write = (device: NbdClient): Promise<number> =>
    runBio(pool, device, { op: WRITE, offset: 0, length: 4096, at });
  const suspended = write(m);
  while ((await second.call('disks', {}))[0]!.inFlight === 0);

  const id = crypto.randomUUID();
  await expect(takeAcross(parts(id), 100)).rejects.toMatchObject({ code: 'ETIMEDOUT' });
  expect(await held()).toEqual([0, 0]);
  expect(await write(d)).toBe(0);
  await second.call('dmResume', { name: 'm' });
  expect(await suspended).toBe(0);
  await takeAcross(parts(id));
  expect(await held()).toEqual([1, 1]);
  expect(await write(m)).toBe(0);

  reactor.arena.release(at);
  await d.close();
  await m.close();
  await reactor.close();
});
