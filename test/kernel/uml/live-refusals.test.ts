/** Live attach refuses volumes where the daemon would wait for itself; those where the machine would, unless forced; and
 *  what is no volume. Nothing has changed then. */

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { Client } from '../../../src/api/client.ts';
import { LiveWorld, loadModules, run } from '../live-world.ts';

const BLKSNAP = path.resolve(import.meta.dirname, '../../../bin/blksnap');
const TABLE = '0 131072 linear 1:0 2048\n';

let world: LiveWorld;

beforeAll(loadModules);
beforeEach(() => {
  world = new LiveWorld('vol', TABLE);
});
afterEach(() => world.dispose());

async function expectRefusal(words: RegExp, device = world.device): Promise<void> {
  await expect(world.client.attach({ path: device })).rejects.toThrow(words);
  expectUntouched();
}

function expectUntouched(): void {
  expect(world.table()).toBe(TABLE);
  expect(world.mappings().filter((name) => name.startsWith('blksnap-'))).toEqual([]);
}

/** Goes there and back. */
async function thereAndBack(client: Client, force: boolean): Promise<void> {
  const { name } = await client.attach({ path: world.device, force });
  expect(world.table()).not.toBe(TABLE);
  await client.detach(name);
  expectUntouched();
}

/** Starts a daemon whose directory or root is elsewhere; `then` runs while it serves. */
async function withDaemon(
  words: readonly string[],
  dir: string,
  then: (client: Client) => Promise<void>,
): Promise<void> {
  const [program, ...args] = words;
  const child: ChildProcess = spawn(program!, args, { stdio: 'ignore' });
  const client = new Client({ dir });
  const isUp = (): Promise<boolean> =>
    client.status().then(
      () => true,
      () => false,
    );
  try {
    await expect.poll(isUp, { interval: 500 }).toBe(true);
    await then(client);
  } finally {
    child.kill();
    await once(child, 'exit');
  }
}

test('one that is suspended, and a mounted device that is no volume', async () => {
  await world.start();
  run('/sbin/dmsetup', 'suspend', 'vol');
  await expectRefusal(/suspended/);
  run('/sbin/dmsetup', 'resume', 'vol');
  run('mkfs.ext4', '-q', '-F', '/dev/ram1');
  const place = world.daemon.path('other');
  fs.mkdirSync(place);
  run('mount', '/dev/ram1', place);
  await expectRefusal(/mounted or in use.*Only device-mapper volumes/, '/dev/ram1');
  run('umount', place);
});

test("one that the daemon's own directory lies on", async () => {
  const dir = path.join(world.place, 'd');
  await withDaemon([BLKSNAP, 'daemon', '--dir', dir], dir, async (client) => {
    for (const force of [false, true])
      await expect(client.attach({ path: world.device, force })).rejects.toThrow(/own directory .* lies on it/);
  });
  expectUntouched();
});

test('one that a held snapshot has its storage on; and storage on one that is attached', async () => {
  await world.start();
  const file = world.daemon.path('other.img');
  fs.writeFileSync(file, '');
  fs.truncateSync(file, 4 << 20);
  await world.client.attach({ path: file, name: 'other' });
  const storage = path.join(world.place, 'storage');
  const { id } = await world.client.createSnapshot({ disks: ['other'], storage });
  await expectRefusal(/where snapshot .* keeps its storage, lies on it; destroy it first/);
  await world.client.destroySnapshot(id);
  await world.attach();
  await expect(world.client.createSnapshot({ disks: ['other'], storage })).rejects.toThrow(/lies on volume "vol"/);
  await world.client.detach('vol');
  expectUntouched();
});

test('one that the machine swaps to, unless forced', async () => {
  await world.start();
  const file = path.join(world.place, 'swap');
  run('dd', 'if=/dev/zero', `of=${file}`, 'bs=1M', 'count=8', 'status=none');
  run('chmod', '600', file);
  run('mkswap', file);
  run('swapon', file);
  try {
    await expectRefusal(/the machine swaps to ".*swap" on it; .*--force/);
    await thereAndBack(world.client, true);
  } finally {
    run('swapoff', file);
  }
  run('umount', world.place);
  run('mkswap', world.device);
  run('swapon', world.device);
  try {
    await expectRefusal(/the machine swaps to .* on it; .*--force/);
  } finally {
    run('swapoff', world.device);
    world.mount();
  }
});

test('one that the root file system is on, unless forced', async () => {
  // A root of its own on the volume, everything in it from elsewhere.
  const dir = world.daemon.path('rooted');
  for (const name of fs.readdirSync('/')) {
    const place = path.join(world.place, name);
    if (fs.lstatSync(`/${name}`).isSymbolicLink()) fs.symlinkSync(fs.readlinkSync(`/${name}`), place);
    else if (fs.statSync(`/${name}`).isDirectory() && name !== 'lost+found') {
      fs.mkdirSync(place);
      run('mount', '--bind', `/${name}`, place);
    }
  }
  for (const name of ['dev', 'proc', 'sys', 'run']) run('mount', '--rbind', `/${name}`, path.join(world.place, name));
  try {
    await withDaemon(['chroot', world.place, BLKSNAP, 'daemon', '--dir', dir], dir, async (client) => {
      await expect(client.attach({ path: world.device })).rejects.toThrow(/"\/", which the machine .* lies on it/);
      expectUntouched();
      await thereAndBack(client, true);
    });
  } finally {
    run('umount', '--recursive', '--lazy', world.place);
    run('mount', world.device, world.place);
  }
});
