/** The daemon's life: start, restart, kill, a second one, a disk that is gone. */

import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MIB } from '../../src/util/units.ts';
import { DaemonWorld, blksnap, fill } from './world.ts';

let world: DaemonWorld;

beforeEach(() => {
  world = new DaemonWorld();
});
afterEach(() => world.close());

describe('a restart', () => {
  it.each(['uring', 'portable'])('keeps disks and their history, on the %s driver', async (driver) => {
    await world.start('--io', driver);
    const a = await world.client.attach({ path: world.image('a.img', 8 * MIB) });
    await world.client.attach({ path: world.image('b.img', 4 * MIB), name: 'second', readOnly: true });
    const { id } = await world.client.createSnapshot({ disks: ['a'], storage: ':memory:' });
    await world.client.destroySnapshot(id);
    await fill(a.uri, 3 * MIB, 4096, 7);
    const before = await world.client.cbt('a');
    const map = await world.client.cbtMap('a');
    expect(map[48]).toBe(2);

    const { code } = await world.stop();
    expect(code).toBe(0);
    expect(fs.readdirSync(world.dir).sort()).toEqual(['cbt', 'daemon.lock', 'state.json']);

    await world.start('--io', driver);
    expect(await world.client.cbt('a')).toEqual({ ...before, reason: '' });
    expect(await world.client.cbtMap('a')).toEqual(map);
    const disks = await world.client.disks();
    expect(disks.map(({ name, state, readOnly }) => [name, state, readOnly])).toEqual([
      ['a', 'attached', false],
      ['second', 'attached', true],
    ]);
  });

  it('follows kill -9: stale sockets are replaced, the history goes on', async () => {
    await world.start();
    const { uri } = await world.client.attach({ path: world.image('a.img', 8 * MIB) });
    await fill(uri, 0, MIB, 1);
    const before = await world.client.cbt('a');
    await world.stop('SIGKILL');
    expect(fs.existsSync(path.join(world.dir, 'api.sock'))).toBe(true);
    expect(fs.existsSync(path.join(world.dir, 'nbd.sock'))).toBe(true);

    await world.start();
    const after = await world.client.cbt('a');
    expect([after.generationId, after.changeNumber]).toEqual([before.generationId, before.changeNumber]);
    await fill(uri, MIB, 512, 2);
    expect([...(await world.client.cbtMap('a'))].filter((number) => number > 0).length).toBe(17);
  });

  it('begins a new history when the disk was written meanwhile, and says so', async () => {
    const file = world.image('a.img', MIB);
    await world.start(file);
    const before = await world.client.cbt('a');
    await world.stop();
    fs.writeFileSync(file, Buffer.alloc(MIB, 1));
    await world.start();
    const after = await world.client.cbt('a');
    expect(after.generationId).not.toBe(before.generationId);
    expect(after.reason).toMatch(/written while it was not attached/);
  });

  it('tells of a disk that is gone, serves the others, and takes it back', async () => {
    const file = world.image('gone.img', MIB);
    await world.start(file, world.image('here.img', MIB));
    await world.stop();
    fs.renameSync(file, `${file}.away`);

    await world.start();
    const [gone, here] = await world.client.disks();
    expect(gone).toMatchObject({ name: 'gone', state: 'failed', failure: { code: 'ENOENT' } });
    expect(here).toMatchObject({ name: 'here', state: 'attached' });
    expect((await world.cli('list')).stdout).toMatch(/gone .* failed .*\n[^]*gone: Cannot open .*gone\.img.*ENOENT/);
    expect((await world.cli('status')).stdout).toMatch(/disks +2 \(1 failed\)/);
    expect((await world.cli('snapshot', 'create', 'gone')).code).toBe(1);

    fs.renameSync(`${file}.away`, file);
    expect((await world.cli('attach', file)).code).toBe(0);
    expect((await world.client.disk('gone')).state).toBe('attached');
    fs.rmSync(file);
    await world.stop();
    await world.start();
    expect((await world.cli('detach', 'gone')).code).toBe(0);
    expect((await world.client.disks()).map(({ name }) => name)).toEqual(['here']);
  });
});

describe('a start', () => {
  it('is refused where another daemon is', async () => {
    await world.start();
    const second = await blksnap('daemon', '--dir', world.dir);
    expect(second.code).toBe(6);
    expect(second.stderr).toContain(`another daemon (process ${world.daemon!.child.pid})`);
    expect((await world.client.status()).pid).toBe(world.daemon!.child.pid);
  });

  it('is refused with a state file that cannot be understood', async () => {
    fs.mkdirSync(world.dir);
    fs.writeFileSync(path.join(world.dir, 'state.json'), '{');
    const { code, stderr } = await blksnap('daemon', '--dir', world.dir);
    expect([code, stderr]).toEqual([
      4,
      expect.stringMatching(/^blksnap: Cannot use the state file .*not JSON.*attach the disks again$/m),
    ]);
  });

  it('is refused when a disk that was named cannot be attached', async () => {
    const { code, stderr } = await blksnap('daemon', '--dir', world.dir, world.file('none.img'));
    expect([code, stderr]).toEqual([5, expect.stringMatching(/none\.img.*no such file/)]);
    expect(fs.readdirSync(world.dir).filter((name) => name.endsWith('.sock'))).toEqual([]);
  });

  it('takes disks, once', async () => {
    const file = world.image('a.img', MIB);
    await world.start(file);
    await world.stop();
    await world.start(file);
    expect((await world.client.disks()).length).toBe(1);
  });

  it('serves NBD over TCP, and warns when others can reach it', async () => {
    await world.start('--nbd', '127.0.0.1:0', world.image('a.img', MIB));
    const { uri } = await world.client.disk('a');
    expect(uri).toMatch(/^nbd:\/\/127\.0\.0\.1:[1-9]\d*\/a$/);
    await fill(uri, 0, 512, 1);
    expect((await world.stop()).stderr).not.toMatch(/whoever/);
    await world.start('--nbd', '0.0.0.0:0', '--insecure-tcp');
    expect((await world.stop()).stderr).toMatch(/whoever reaches/);
    const refused = await world.cli('daemon', '--nbd', '0.0.0.0:0');
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringMatching(/--insecure-tcp/)]);
  });

  it('keeps everything to its owner', async () => {
    await world.start();
    const mode = (name: string): number => fs.statSync(path.join(world.dir, name)).mode & 0o777;
    expect([mode('.'), mode('api.sock'), mode('nbd.sock'), mode('daemon.lock')]).toEqual([0o700, 0o600, 0o600, 0o600]);
  });
});

it.each(['SIGINT', 'SIGTERM'] as const)('ends in order on %s, also with clients and a snapshot', async (signal) => {
  await world.start();
  const { uri } = await world.client.attach({ path: world.image('a.img', 8 * MIB) });
  const { id } = await world.client.createSnapshot({ disks: ['a'] });
  const waiting = world.client.events(id, { timeoutMs: 30_000 }).catch(() => []);
  await fill(uri, 0, MIB, 1);
  const { code, stderr } = await world.stop(signal);
  expect([code, stderr.trim().split('\n').at(-1)]).toEqual([0, expect.stringMatching(/"msg":"ended"/)]);
  expect(await waiting).toEqual([]);
  expect(fs.readdirSync(world.dir).sort()).toEqual(['cbt', 'daemon.lock', 'state.json']);
});
