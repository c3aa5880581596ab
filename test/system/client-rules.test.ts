/** Which clients see and use which disks of a real daemon: by pre-shared keys over TLS, by user id on a shared socket,
 *  and by nothing at all. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { openReactor } from '../../src/io/open.ts';
import type { Reactor } from '../../src/io/reactor.ts';
import { NbdClient, listExports } from '../../src/nbd/client.ts';
import { parseNbdUri } from '../../src/nbd/uri.ts';
import { MIB } from '../../src/util/units.ts';
import { DaemonWorld } from '../daemon/world.ts';
import { requirePrograms, requireRoot } from '../requirements.ts';

let world: DaemonWorld;
let reactor: Reactor;
let keys: string;
const open: NbdClient[] = [];

beforeEach(async () => {
  world = new DaemonWorld();
  reactor = await openReactor({ driver: 'portable', arenaBytes: 8 * MIB });
  keys = world.file('keys.psk');
  const lines = ['alice', 'bob'].map((name) => `${name}:${Buffer.from(name.padEnd(16)).toString('hex')}\n`);
  fs.writeFileSync(keys, lines.join(''), { mode: 0o600 });
});
afterEach(async () => {
  for (const device of open.splice(0)) await device.close();
  await reactor.close();
  await world.close();
});

async function connect(exportName: string, name: string): Promise<NbdClient> {
  const { address } = parseNbdUri((await world.client.status()).nbdUri);
  const device = await NbdClient.connect({ reactor, address, exportName, tls: { pskName: name, psk: keys } });
  open.push(device);
  return device;
}

async function list(name: string): Promise<string[]> {
  const { address } = parseNbdUri((await world.client.status()).nbdUri);
  const exports = await listExports(reactor, { address, tls: { pskName: name, psk: keys } });
  return exports.map((one) => one.name).sort();
}

describe.each([1, 3])('with names, on %i I/O threads', (threads) => {
  beforeEach(async (context) => {
    const disks = ['one', 'two', 'three'].map((name) => world.image(`${name}.img`, 4 * MIB));
    try {
      await world.start('--io-threads', String(threads), '--nbd', '127.0.0.1:0', '--tls-psk', keys, ...disks);
    } catch (cause) {
      context.skip(threads > 1 && /cannot hand clients/.test(String(cause)), 'needs io_uring for several I/O threads');
      throw cause;
    }
  });

  it('a client sees what it was allowed to, and the rest does not exist', async () => {
    expect(await list('alice')).toEqual([]);
    expect((await world.cli('allow', 'one', '--client', 'alice')).code).toBe(0);
    await world.client.allow('two', 'bob');
    await world.client.allow('three', 'alice');
    expect([await list('alice'), await list('bob')]).toEqual([['one', 'three'], ['two']]);
    for (const name of ['one', 'three']) expect((await connect(name, 'alice')).size).toBe(4 * MIB);
    const words = async (exportName: string): Promise<string> =>
      await connect(exportName, 'alice').then(
        () => 'connected',
        (cause: unknown) => (cause as Error).message.replace(exportName, 'X').replace(exportName, 'X'),
      );
    expect(await words('two')).toBe(await words('nothing'));
    expect(await words('two')).toMatch(/no export "X"/);
  });

  it('images of its snapshots go with a disk', async () => {
    await world.client.allow('one', 'alice');
    const { id, images } = await world.client.createSnapshot({ disks: ['one', 'two'] });
    expect(await list('alice')).toEqual(['one', `one@${id}`, `one@${id}+once`]);
    expect((await connect(images[0]!.exportName, 'alice')).size).toBe(4 * MIB);
    await expect(connect(images[1]!.exportName, 'alice')).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('who may no longer is cut off, and stays out', async () => {
    await world.client.allow('two', 'alice');
    await world.client.allow('two', 'bob');
    const [alice, bob] = [await connect('two', 'alice'), await connect('two', 'bob')];
    expect((await world.cli('disallow', 'two', '--client', 'alice')).code).toBe(0);
    await expect.poll(() => alice.failure).toBeDefined();
    expect([bob.failure, await list('alice')]).toEqual([undefined, []]);
    await expect(connect('two', 'alice')).rejects.toMatchObject({ code: 'ENOENT' });
    expect((await world.cli('clients', 'two')).stdout).toBe('bob\n');
  });

  it('rules are remembered with their disk, and go with it', async () => {
    await world.client.allow('one', 'alice');
    await world.stop('SIGKILL');
    await world.start('--nbd', '127.0.0.1:0', '--tls-psk', keys);
    expect(await list('alice')).toEqual(['one']);
    expect(fs.statSync(path.join(world.dir, 'clients.json')).mode & 0o777).toBe(0o600);
    await world.client.detach('one');
    await world.client.attach({ path: world.file('one.img') });
    expect([await list('alice'), await world.client.clients('one')]).toEqual([[], null]);
  });
});

it('a broken file of rules keeps the daemon from starting', async () => {
  await world.start();
  await world.stop();
  fs.writeFileSync(path.join(world.dir, 'clients.json'), '{"version":1,"disks":{"vm":"alice"}}');
  const { code, stderr } = await world.cli('daemon');
  expect([code, stderr]).toEqual([4, expect.stringMatching(/clients\.json/)]);
});

it('clients without a name see the disks without rules', async () => {
  await world.start('--nbd', '127.0.0.1:0', world.image('one.img', MIB), world.image('two.img', MIB));
  const { address } = parseNbdUri((await world.client.status()).nbdUri);
  const names = async (): Promise<string[]> => (await listExports(reactor, { address })).map(({ name }) => name).sort();
  expect(await names()).toEqual(['one', 'two']);
  await world.client.allow('one', 'alice');
  expect(await names()).toEqual(['two']);
  await world.client.disallow('one', 'alice');
  expect([await names(), await world.client.clients('one')]).toEqual([['two'], []]);
  const own = { address: { kind: 'unix', path: world.client.nbdSocket } } as const;
  expect((await listExports(reactor, own)).length).toBe(2);
});

it('users of the machine see by the shared socket what their user id was allowed to', async (context) => {
  requireRoot(context);
  requirePrograms(context, 'nbdinfo', 'setpriv');
  const shared = world.file('shared.sock');
  fs.chmodSync(world.directory, 0o755);
  await world.start('--nbd-shared', shared, world.image('one.img', MIB), world.image('two.img', MIB));
  expect(fs.statSync(shared).mode & 0o777).toBe(0o666);
  await world.client.allow('one', 'uid:65534');
  const seen = (uid: number): string => {
    const as = [
      '--reuid',
      String(uid),
      '--clear-groups',
      'nbdinfo',
      '--list',
      '--json',
      `nbd+unix:///?socket=${shared}`,
    ];
    const { exports } = JSON.parse(execFileSync('setpriv', as, { encoding: 'utf8' })) as {
      exports: Array<{ 'export-name': string }>;
    };
    return exports
      .map((one) => one['export-name'])
      .sort()
      .join();
  };
  expect([seen(65534), seen(65533), seen(0)]).toEqual(['one', '', 'one,two']);
  const socket = `nbd+unix:///?socket=${world.client.nbdSocket}`;
  const other = ['--reuid', '65534', '--clear-groups', 'nbdinfo', '--list', socket];
  expect(() => execFileSync('setpriv', other, { stdio: 'pipe' })).toThrow(/Permission denied/);
});

it.each([
  [['--nbd', '0.0.0.0:0'], /other machines .* --insecure-tcp/],
  [['--nbd', ':0'], /other machines/],
  [['--tls-psk', '/x'], /--nbd host:port|\/x/],
  [['--nbd', '127.0.0.1:0', '--tls-verify-peer'], /needs --tls-certificates/],
  [['--nbd', '127.0.0.1:0', '--tls-psk', '/x', '--tls-certificates', '/y'], /at once/],
])('daemon %j does not start', async (args, words) => {
  const { code, stderr } = await world.cli('daemon', ...args);
  expect(code).toBeGreaterThan(0);
  expect(stderr).toMatch(words);
});
