/** A disk with clients is not taken from under them, unless by force. */

import { afterAll, beforeAll, expect, it } from 'vitest';
import { ApiWorld } from '../../test/api-world.ts';
import { openReactor } from '../io/open.ts';
import type { Reactor } from '../io/reactor.ts';
import { NbdClient } from '../nbd/client.ts';
import { parseNbdUri } from '../nbd/uri.ts';
import { MIB } from '../util/units.ts';

let world: ApiWorld;
let reactor: Reactor;
beforeAll(async () => {
  world = await ApiWorld.open();
  reactor = await openReactor({ arenaBytes: 8 * MIB, cooperative: true });
});
afterAll(async () => {
  await reactor.close();
  await world.close();
});

it('is refused while a client is connected, and not when it has just gone', async () => {
  const { uri } = await world.client.attach({ path: world.file('busy.img', MIB), name: 'busy' });
  await world.client.attach({ path: world.file('idle.img', MIB), name: 'idle' });
  const device = await NbdClient.connect({ reactor, ...parseNbdUri(uri) });
  await expect(world.client.detach('busy')).rejects.toMatchObject({ code: 'EBUSY', message: /a client is connected/ });
  await world.client.detach('idle');
  await device.close();
  await world.client.detach('busy');
  expect(await world.client.disks()).toEqual([]);
});

it('by force cuts the client off', async () => {
  const { uri } = await world.client.attach({ path: world.file('forced.img', MIB), name: 'forced' });
  const device = await NbdClient.connect({ reactor, ...parseNbdUri(uri) });
  await world.client.detach('forced', { force: true });
  expect(await world.client.disks()).toEqual([]);
  await device.close();
});
