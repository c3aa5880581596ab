/** Disks on two I/O threads: their clients, takes over both, the order of writes across disks, restarts. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { DiskView, SnapshotView, StatusView } from '../../src/api/client.ts';
import { BioPool, WRITE, runBio } from '../../src/block/bio.ts';
import { openReactor } from '../../src/io/open.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { parseNbdUri } from '../../src/nbd/uri.ts';
import { MIB } from '../../src/util/units.ts';
import { requirePrograms, requireRoot } from '../requirements.ts';
import { DaemonUnderTest, fio } from './daemon-under-test.ts';

const run = promisify(execFile);
const SIZE = 32 * MIB;
let daemon: DaemonUnderTest;

beforeEach(async () => {
  daemon = new DaemonUnderTest();
});
afterEach(() => daemon.dispose());

/** Disks `a` and `b`, one on each thread. */
async function twoDisks(): Promise<void> {
  await daemon.start('--io-threads', '2');
  await daemon.disk('a', SIZE);
  await daemon.disk('b', SIZE);
}

/** Of both disks. */
async function takenInMemory(...options: string[]): Promise<SnapshotView> {
  return await daemon.json<SnapshotView>('snapshot', 'create', 'a', 'b', '--storage', ':memory:', ...options);
}

async function contentOf(uri: string): Promise<Buffer> {
  return (await run('nbdcopy', [uri, '-'], { maxBuffer: 2 * SIZE, encoding: 'buffer' })).stdout;
}

const refusal = (stderr: RegExp) => ({ stderr: expect.stringMatching(stderr) as string });

test('the number of threads is checked, and shown', async () => {
  await expect(daemon.cli('daemon', '--io-threads', '17')).rejects.toMatchObject(
    refusal(/want a whole number from 1 to 16/),
  );
  await expect(daemon.cli('daemon', '--io-threads', '2', '--io', 'portable')).rejects.toMatchObject(
    refusal(/Cannot run 2 I\/O threads: the portable driver .*use --io-threads 1/),
  );
  await twoDisks();
  expect((await daemon.json<StatusView>('status')).ioThreads).toBe(2);
  expect(await daemon.cli('status')).toMatch(/I\/O threads +2/);
});

test('clients find every export, whatever they ask about it first, and none that is gone', async (context) => {
  requirePrograms(context, 'nbdinfo', 'qemu-img', 'nbdcopy');
  await twoDisks();
  const before = fs.readFileSync(daemon.path('b.img'));
  const { id } = await daemon.json<SnapshotView>('snapshot', 'create', 'a', 'b');
  const { stdout } = await run('nbdinfo', ['--list', '--json', daemon.uri('')]);
  const names = (JSON.parse(stdout) as { exports: Array<{ 'export-name': string }> }).exports.map(
    (one) => one['export-name'],
  );
  expect(names).toEqual(expect.arrayContaining(['a', 'b', `a@${id}`, `b@${id}`]));
  // Selects a metadata context before it chooses the export.
  for (const name of ['a', 'b', `a@${id}`, `b@${id}`])
    expect((await run('nbdinfo', ['--map', daemon.uri(name)])).stdout).toMatch(/data|hole/);
  await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', daemon.uri('b'), daemon.path('b.img')]);
  expect((await contentOf(daemon.uri(`b@${id}`))).equals(before)).toBe(true);
  await expect(daemon.cli('detach', 'b')).rejects.toMatchObject(refusal(/is held; destroy it first/));
  await daemon.cli('snapshot', 'destroy', id);
  await daemon.cli('detach', 'b');
  await expect(run('nbdinfo', [daemon.uri('b')])).rejects.toThrow(/No such file/);
  expect(await daemon.stop()).toBe(0);
});

test('fio verifies two disks on two threads at once while snapshots of both come and go', async (context) => {
  requirePrograms(context, 'fio', 'nbdcopy');
  await twoDisks();
  const loads = ['a', 'b'].map((name) =>
    fio(
      daemon.uri(name),
      '--rw=randwrite', '--bsrange=4k-64k', '--iodepth=8', `--size=${SIZE}`, '--time_based', '--runtime=5',
      '--verify=crc32c', '--verify_fatal=1', '--serialize_overlap=1', '--verify_state_save=0', '--randrepeat=0',
    ),
  ); // prettier-ignore
  let running = 2;
  for (const { ended } of loads) void ended.then(() => running--);
  for (let rounds = 0; running > 0; rounds++) {
    const taken = await daemon.json<SnapshotView>('snapshot', 'create', 'a', 'b');
    const first = await Promise.all(taken.images.map(({ uri }) => contentOf(uri)));
    await sleep(100);
    const again = await Promise.all(taken.images.map(({ uri }) => contentOf(uri)));
    expect(again.every((content, index) => content.equals(first[index]!))).toBe(true);
    await daemon.cli('snapshot', 'destroy', taken.id);
  }
  for (const { ended } of loads) expect(await ended).toMatchObject({ code: 0 });
});

/** Writes a counter to both disks in turn, each only when the one before was answered. */
async function countOn(names: readonly string[], go: { on: boolean; count: number }): Promise<void> {
  const reactor = await openReactor({ driver: 'portable', arenaBytes: 8 * MIB });
  const pool = new BioPool();
  const devices: NbdClient[] = [];
  for (const name of names) devices.push(await NbdClient.connect({ reactor, ...parseNbdUri(daemon.uri(name)) }));
  const at = reactor.arena.allocate(4096);
  while (go.on) {
    const count = go.count + 1;
    reactor.arena.view.setUint32(at, count);
    const device = devices[count % devices.length]!;
    expect(await runBio(pool, device, { op: WRITE, offset: 0, length: 4096, at })).toBe(0);
    go.count = count;
  }
  reactor.arena.release(at);
  for (const device of devices) await device.close();
  await reactor.close();
}

test('no image shows a write without those that were answered before it on another thread', async (context) => {
  requirePrograms(context, 'nbdcopy');
  await twoDisks();
  const go = { on: true, count: 0 };
  const writing = countOn(['a', 'b'], go);
  let last = 0;
  const takes = 12;
  for (let i = 0; i < takes; i++) {
    const { count } = go;
    await expect.poll(() => go.count, { interval: 1 }).toBeGreaterThan(count + 2);
    const { id, images, heldMs } = await takenInMemory();
    expect(heldMs).toBeGreaterThan(0);
    const [a, b] = (await Promise.all(images.map(({ uri }) => contentOf(uri)))).map((content) =>
      content.readUInt32BE(0),
    );
    // One more than the other, whichever was written last.
    expect(Math.abs(a! - b!)).toBe(1);
    expect(Math.max(a!, b!)).toBeGreaterThan(last);
    last = Math.max(a!, b!);
    await daemon.cli('snapshot', 'destroy', id);
  }
  go.on = false;
  await writing;
});

test('no part of a snapshot gets a place that lies on a disk of the other thread', async (context) => {
  requireRoot(context);
  requirePrograms(context, 'losetup', 'mkfs.ext4', 'mount');
  await daemon.start('--io-threads', '2');
  for (const name of ['a', 'b']) {
    fs.writeFileSync(daemon.path(`${name}.img`), '');
    fs.truncateSync(daemon.path(`${name}.img`), SIZE);
    await run('mkfs.ext4', ['-q', daemon.path(`${name}.img`)]);
    await daemon.cli('attach', daemon.path(`${name}.img`), '--name', name);
  }
  const held = await takenInMemory('--limit', '8M');
  for (const name of ['a', 'b']) {
    const directory = daemon.path(`mounted-${name}`);
    fs.mkdirSync(directory);
    const loop = (await run('losetup', ['--find', '--show', daemon.path(`${name}.img`)])).stdout.trim();
    try {
      await run('mount', [loop, directory]);
      const onOrigin = refusal(new RegExp(`lies on disk "${name}"`));
      await expect(daemon.cli('snapshot', 'append', held.id, '--storage', directory)).rejects.toMatchObject(onOrigin);
      await expect(daemon.cli('snapshot', 'create', 'a', 'b', '--storage', directory)).rejects.toMatchObject(onOrigin);
    } finally {
      await run('umount', [directory]).catch(() => {});
      await run('losetup', ['--detach', loop]);
    }
  }
  const { snapshots } = await daemon.json<{ snapshots: SnapshotView[] }>('snapshot', 'list');
  expect(snapshots).toMatchObject([{ id: held.id, places: [{ path: ':memory:' }, { path: ':memory:' }] }]);
});

test('a snapshot over two threads has one place per thread, shares of its limit, and is all or nothing', async () => {
  await twoDisks();
  const one = daemon.path('one-file');
  await expect(daemon.cli('snapshot', 'create', 'a', 'b', '--storage', one)).rejects.toMatchObject(
    refusal(/its disks live on several I\/O threads.*name a directory/),
  );
  const held = await takenInMemory('--limit', '9M');
  expect(held.places).toHaveLength(2);
  expect(held.limitBytes).toBe(9 * MIB);
  expect(held.images.map(({ disk }) => disk)).toEqual(['a', 'b']);
  expect(await daemon.cli('snapshot', 'append', held.id, '--limit', '12M')).toBe('12.0 MiB\n');
  expect(await daemon.cli('snapshot', 'append', held.id, '--storage', daemon.directory, '--limit', '4M')).toBe(
    '16.0 MiB\n',
  );
  const { snapshots } = await daemon.json<{ snapshots: SnapshotView[] }>('snapshot', 'list');
  expect(snapshots).toMatchObject([{ id: held.id, limitBytes: 16 * MIB, heldMs: held.heldMs }]);
  await daemon.cli('snapshot', 'destroy', held.id);
  expect((await daemon.json<{ snapshots: SnapshotView[] }>('snapshot', 'list')).snapshots).toEqual([]);
  await daemon.cli('detach', 'a');
  await daemon.cli('detach', 'b');
});

test('what one thread refuses leaves nothing behind on another', async () => {
  await daemon.start('--io-threads', '2', '--max-snapshots-per-disk', '1', '--max-snapshots', '2');
  for (const name of ['a', 'b', 'c']) await daemon.disk(name, MIB);
  const { id } = await daemon.json<SnapshotView>('snapshot', 'create', 'b');
  await expect(daemon.cli('snapshot', 'create', 'a', 'b')).rejects.toMatchObject(refusal(/disk "b": 1 of it are held/));
  await daemon.cli('snapshot', 'create', 'a');
  await expect(daemon.cli('snapshot', 'create', 'c')).rejects.toMatchObject(
    refusal(/2 are held, as many as --max-snapshots/),
  );
  await daemon.cli('snapshot', 'destroy', id);
  await daemon.cli('snapshot', 'create', 'c');
});

test('after kill -9 the disks and their histories are back, wherever they live then', async (context) => {
  requirePrograms(context, 'fio');
  await twoDisks();
  const target = daemon.path('backups');
  await daemon.cli('backup', 'a', 'b', '--to', target);
  const before = ['a', 'b'].map((name) => fs.statSync(daemon.path(`${name}.img`)).mtimeMs);
  const load = ['a', 'b'].map((name) =>
    fio(
      daemon.uri(name),
      '--rw=randwrite',
      '--bs=4k',
      '--iodepth=16',
      `--size=${SIZE}`,
      '--time_based',
      '--runtime=60',
    ),
  );
  for (const [i, name] of ['a', 'b'].entries())
    await expect.poll(() => fs.statSync(daemon.path(`${name}.img`)).mtimeMs).toBeGreaterThan(before[i]!);
  await sleep(200);
  await daemon.stop('SIGKILL');
  for (const { ended } of load) await ended;
  await daemon.start('--io-threads', '3');
  const { disks } = await daemon.json<{ disks: DiskView[] }>('list');
  expect(disks.map(({ name, state, cbt }) => [name, state, cbt?.reason])).toEqual([
    ['a', 'attached', ''],
    ['b', 'attached', ''],
  ]);
  await daemon.cli('backup', 'a', 'b', '--to', target);
  for (const name of ['a', 'b']) {
    const restored = daemon.path(`${name}-restored`);
    await daemon.cli('restore', target, '--disk', name, '--to', restored);
    expect(fs.readFileSync(restored).equals(fs.readFileSync(daemon.path(`${name}.img`)))).toBe(true);
  }
});

test('mapped devices and what they lie on live together, also after a restart', async () => {
  await twoDisks();
  const sectors = SIZE / 512;
  await expect(daemon.cli('dm', 'create', 'm', '--table', `0 ${sectors} linear b 0`)).rejects.toMatchObject(
    refusal(/"b" here: it lives on another I\/O thread.*--mappable.*--io-threads 1/),
  );
  // It would live on the other thread again.
  await daemon.cli('detach', 'b');
  await daemon.cli('attach', daemon.path('b.img'), '--mappable');
  await daemon.cli('dm', 'create', 'both', '--table', `0 8 linear a 8\n8 8 linear b 0`);
  await daemon.cli('dm', 'remove', 'both');
  await daemon.cli('dm', 'create', 'm', '--table', `0 ${sectors} linear a 0`);
  await daemon.stop();
  await daemon.start('--io-threads', '2');
  const { disks } = await daemon.json<{ disks: DiskView[] }>('list');
  expect(disks.map(({ name, state }) => [name, state])).toEqual([
    ['a', 'attached'],
    ['b', 'attached'],
    ['m', 'attached'],
  ]);
  await daemon.cli('dm', 'create', 'both', '--table', `0 8 zero\n8 8 linear b 0`);
});
