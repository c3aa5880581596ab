/** Live attach: a mounted volume under load moves onto the daemon and back, whatever becomes of the daemon meanwhile.
 *  ROUNDS and SEED in the environment: how often it goes there and back, and when the daemon dies on the way. */

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { Prng } from '../../../src/util/prng.ts';
import { LiveWorld, loadModules, run } from '../live-world.ts';
import type { DeathPoint } from '../live-world.ts';

const ROUNDS = Number(process.env['ROUNDS'] ?? 3);
/** Every fourth round the daemon dies on the way. */
const SEED = Number(process.env['SEED'] ?? 1);
/** Rounds between two lines that tell how far it is. */
const PROGRESS = 10;
const SECTORS = 131_072;
/** Two targets, and an offset that is not 0. */
const TABLE = `0 65536 linear 1:0 2048\n65536 ${SECTORS - 65_536} linear 1:0 131072\n`;
const ROUND_LIMIT_MS = 300_000;

let world: LiveWorld;

beforeAll(loadModules);
beforeEach(async () => {
  world = new LiveWorld('vol', TABLE);
  await world.start();
});
afterEach(() => world.dispose());

function expectOriginal(): void {
  expect(world.table()).toBe(TABLE);
  expect(world.mappings()).toEqual(['vol']);
  expect(world.isSuspended()).toBe(false);
}

/** Before each step, and after the last; what lies between two calls of dmsetup is one state. */
const THERE: readonly DeathPoint[] = [
  { command: 'create', when: 'after' },
  { command: 'load', when: 'before' },
  { command: 'resume', when: 'before' },
  { command: 'resume', when: 'after' },
];
const BACK: readonly DeathPoint[] = [
  { command: 'load', when: 'before' },
  { command: 'resume', when: 'before' },
  { command: 'resume', when: 'after' },
  { command: 'remove', when: 'before' },
  { command: 'remove', when: 'after' },
];

/** The daemon dies at the point; the next one finds the volume. */
async function dieIn(action: () => Promise<unknown>, point: DeathPoint): Promise<void> {
  world.dieAt(point);
  await expect(action()).rejects.toThrow();
  expect(world.hasDied).toBe(true);
  expect(world.isSuspended()).toBe(false);
  await world.daemon.stop('SIGKILL');
  await world.start();
  expectOriginal();
  expect(await world.client.disks()).toEqual([]);
}

async function thereAndBack(): Promise<void> {
  const { name, live, kernelDevice, path: place } = await world.attach();
  expect({ name, live, place }).toEqual({ name: 'vol', live: true, place: '/dev/mapper/vol' });
  const number = run('lsblk', '-dno', 'MAJ:MIN', kernelDevice!.path!).trim();
  expect(world.table()).toBe(`0 ${SECTORS} linear ${number} 0\n`);
  await world.client.detach('vol');
  expectOriginal();
}

test(
  'goes onto the daemon and back under load, the table byte for byte',
  { timeout: ROUNDS * ROUND_LIMIT_MS },
  async () => {
    const random = new Prng(SEED);
    const load = world.load();
    for (let round = 0; round < ROUNDS; round++) {
      const death = random.below(4 * (THERE.length + BACK.length));
      const there = THERE[death];
      const back = BACK[death - THERE.length];
      if (there !== undefined) await dieIn(() => world.attach(), there);
      else if (back === undefined) await thereAndBack();
      else {
        await world.attach();
        await dieIn(() => world.client.detach('vol'), back);
      }
      if ((round + 1) % PROGRESS === 0) console.log(`${round + 1} of ${ROUNDS} rounds, seed ${SEED}`);
    }
    expect(await load.end()).toBeGreaterThan(10);
    world.check();
  },
);

test('a daemon killed at any step of an attach leaves a volume that the next gives its own table', async () => {
  const load = world.load();
  for (const point of THERE) await dieIn(() => world.attach(), point);
  await load.end();
  world.check();
});

test('a daemon killed at any step of a detach, too', async () => {
  const load = world.load();
  for (const point of BACK) {
    await world.attach();
    await dieIn(() => world.client.detach('vol'), point);
  }
  await load.end();
  world.check();
});

test('a recovery that is killed itself is taken up by the next', async () => {
  const load = world.load();
  await world.attach();
  world.dieAt({ command: 'load', when: 'before' });
  await expect(world.client.detach('vol')).rejects.toThrow();
  for (const point of BACK) {
    await world.daemon.stop('SIGKILL');
    world.dieAt(point);
    await world.start().catch(() => {});
    if (world.table() === TABLE) break;
    expect(world.isSuspended()).toBe(false);
  }
  await world.daemon.stop('SIGKILL');
  world.spare();
  await world.start();
  expectOriginal();
  await load.end();
  world.check();
});

test('a killed daemon comes back to its volume, and the history of changes goes on', async () => {
  await world.attach();
  const load = world.load();
  const before = await world.client.cbt('vol');
  await world.daemon.stop('SIGKILL');
  const during = fs.promises.writeFile(path.join(world.place, 'during'), Buffer.alloc(65_536, 7), { flush: true });
  await world.start();
  await during;
  const after = await world.client.cbt('vol');
  expect(after.generationId).toBe(before.generationId);
  expect(after.reason).toBe('');
  await load.end();
  await world.client.detach('vol');
  expectOriginal();
  expect(fs.readFileSync(path.join(world.place, 'during')).equals(Buffer.alloc(65_536, 7))).toBe(true);
  world.check();
});

test('a daemon that ends in order gives the table back, and attaches the volume again at its start', async () => {
  await world.attach();
  const load = world.load();
  expect(await world.daemon.stop()).toBe(0);
  expectOriginal();
  await world.start();
  expect(world.table()).not.toBe(TABLE);
  await load.end();
  await world.daemon.stop('SIGKILL');
  await world.daemon.cli('recover');
  expectOriginal();
  world.check();
});

test('a backup, and an incremental one, restore to what the volume was', async () => {
  await world.attach();
  const backups = world.daemon.path('backups');
  const contents: string[] = [];
  for (const [index, name] of ['one', 'two'].entries()) {
    fs.writeFileSync(path.join(world.place, name), Buffer.alloc(512 * 1024, index + 1), { flush: true });
    run('sync', '-f', world.place);
    run('fsfreeze', '-f', world.place);
    try {
      await world.daemon.cli('backup', 'vol', '--to', backups);
      contents.push(sha256OfDevice(world.device));
    } finally {
      run('fsfreeze', '-u', world.place);
    }
  }
  const { disks } = await world.daemon.json<BackupList>('backups', backups);
  expect(disks[0]?.points.map(({ kind }) => kind)).toEqual(['full', 'incremental']);
  const restored = world.daemon.path('restored.img');
  await world.daemon.cli('restore', backups, '--disk', 'vol', '--to', restored);
  expect(run('sha256sum', restored).split(' ')[0]).toBe(contents[1]);
  expect(contents[0]).not.toBe(contents[1]);
});

interface BackupList {
  readonly disks: ReadonlyArray<{ readonly points: ReadonlyArray<{ readonly kind: string }> }>;
}

/** Past the page cache: that of a block device does not have what a file system on it has written. */
function sha256OfDevice(device: string): string {
  return run('sh', '-c', `dd if=${device} bs=1M iflag=direct status=none | sha256sum`).split(' ')[0]!;
}

test('a table that another program swaps in is noticed: image lost, history anew', async () => {
  await world.attach();
  const before = await world.client.cbt('vol');
  const { id } = await world.client.createSnapshot({ disks: ['vol'] });
  run('sh', '-c', `printf '${TABLE.replaceAll('\n', '\\n')}' | /sbin/dmsetup load vol && /sbin/dmsetup resume vol`);
  await expect.poll(async () => (await world.client.disks())[0]?.state).toBe('failed');
  expect((await world.client.snapshot(id)).images[0]?.error).toBe('ESTALE');
  await expect(world.client.createSnapshot({ disks: ['vol'] })).rejects.toThrow(/another table/);
  await world.client.destroySnapshot(id);
  await world.attach();
  expect((await world.client.cbt('vol')).generationId).not.toBe(before.generationId);
  await world.client.detach('vol');
  expectOriginal();
});

test('dm-crypt: the key is nowhere but in the kernel', async () => {
  run('modprobe', 'dm-crypt');
  run('modprobe', 'xts');
  const key = createHash('sha512').update('a key').digest('hex');
  const crypt = new LiveWorld('secret', `0 ${SECTORS} crypt aes-xts-plain64 ${key} 0 1:2 0\n`);
  try {
    await crypt.start();
    const load = crypt.load();
    const table = crypt.table();
    await crypt.attach();
    expect(fs.readFileSync(path.join(crypt.daemon.state, 'state.json'), 'utf8')).not.toContain(key.slice(0, 16));
    await crypt.daemon.stop('SIGKILL');
    await crypt.start();
    await crypt.client.detach('secret');
    expect(crypt.table()).toBe(table);
    await load.end();
    crypt.check();
  } finally {
    await crypt.dispose();
  }
});
