/** What is secret is seen nowhere: pre-shared keys and the API's token are in no log, no error, no argument or environment of a
 *  process of ours, no answer of the API and no file of state. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { parseNbdUri } from '../../src/nbd/uri.ts';
import { openReactor } from '../../src/io/open.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { MIB } from '../../src/util/units.ts';
import { DaemonWorld, blksnap } from '../daemon/world.ts';

const KEYS = ['c0ffee00112233445566778899aabbcc', 'deadbeef112233445566778899aabbcc'];
let world: DaemonWorld;

beforeEach(() => {
  world = new DaemonWorld();
});
afterEach(async () => {
  await world.close();
});

/** The process and all that it has started. */
function family(pid: number): number[] {
  const children = fs
    .readdirSync(`/proc/${pid}/task`)
    .flatMap((task) => fs.readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').trim().split(' '))
    .filter((child) => child !== '')
    .map(Number);
  return [pid, ...children.flatMap(family)];
}

function filesBelow(directory: string): string[] {
  return fs
    .readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.join(entry.parentPath, entry.name));
}

it('keys and tokens are seen nowhere', async () => {
  const [psk, others, broken, token] = ['psk', 'others', 'broken', 'token'].map((name) => world.file(name));
  fs.writeFileSync(psk!, `alice:${KEYS[0]}\n`, { mode: 0o600 });
  fs.writeFileSync(others!, `alice:${KEYS[1]}\n`, { mode: 0o600 });
  fs.writeFileSync(broken!, `alice:${KEYS[1]}-\n`, { mode: 0o600 });
  const hold = path.join(world.directory, 'held');
  const go = path.join(world.directory, 'go');
  execFileSync('mkfifo', [go]);
  const hook = `sh -c ': >${hold}; read word <${go}'`;
  const listening = ['--nbd', '127.0.0.1:0', '--tls-psk', psk!, '--api-tcp', '127.0.0.1:0', '--api-token', token!];
  await world.start(...listening, '--log-level', 'trace', world.image('one.img', MIB));
  const secrets = [
    ...KEYS,
    ...KEYS.map((key) => Buffer.from(key, 'hex').toString('base64')),
    fs.readFileSync(token!, 'utf8').trim(),
  ];
  const shown: string[] = [];

  // Clients with the right key, another one, and no key at all; words that a person gets wrong.
  const { address } = parseNbdUri((await world.client.status()).nbdUri);
  const reactor = await openReactor({ driver: 'portable', arenaBytes: 8 * MIB });
  await world.client.allow('one', 'alice');
  for (const file of [psk!, others!, broken!]) {
    const tls = { pskName: 'alice', psk: file };
    const device = await NbdClient.connect({ reactor, address, exportName: 'one', tls }).catch(
      (cause: unknown) => cause,
    );
    if (device instanceof NbdClient) await device.close();
    else shown.push(String(device), String((device as Error).stack), String((device as Error).cause));
  }
  await reactor.close();
  expect(shown.length).toBe(2 * 3);
  shown.push(
    JSON.stringify(await blksnap('daemon', '--dir', world.file('other'), '--nbd', '127.0.0.1:0', '--tls-psk', broken!)),
  );

  // While a hook runs: its arguments and environment are those of a process of ours.
  const limit = ['--freeze-timeout', '60000'];
  const taking = world.cli('snapshot', 'create', 'one', '--freeze', hook, '--thaw', 'true', ...limit);
  await expect.poll(() => fs.existsSync(hold)).toBe(true);
  const pids = family(world.daemon!.child.pid!);
  expect(pids.length).toBeGreaterThan(1);
  for (const pid of pids)
    for (const file of ['cmdline', 'environ']) shown.push(fs.readFileSync(`/proc/${pid}/${file}`, 'latin1'));
  fs.writeFileSync(go, '\n');
  const { code, stdout, stderr } = await taking;
  expect([code, stderr]).toEqual([0, '']);
  shown.push(stdout);

  for (const command of [['status'], ['list'], ['clients', 'one'], ['snapshot', 'list']])
    for (const style of [[], ['--json']]) shown.push(JSON.stringify(await world.cli(...command, ...style)));
  await world.stop();
  shown.push(world.daemon!.stdout + world.daemon!.stderr);
  const state = filesBelow(world.dir);
  expect(state.length).toBeGreaterThan(1);
  for (const file of state) shown.push(fs.readFileSync(file, 'latin1'));
  for (const secret of secrets) {
    expect(secret.length).toBeGreaterThan(20);
    expect(shown.filter((text) => text.includes(secret))).toEqual([]);
  }
});
