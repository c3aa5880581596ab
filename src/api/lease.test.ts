/** Snapshots whose client may be killed: they go when nobody renews them, and not before. */

import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { ApiWorld } from '../../test/api-world.ts';
import { MIB } from '../util/units.ts';
import { LeaseKeeper } from './lease.ts';

/** Renewed six times as often: of a machine that stalls for less nothing shows. */
const LEASE_MS = 3000;

let world: ApiWorld;
beforeAll(async () => {
  world = await ApiWorld.open();
  await world.client.attach({ path: world.file('disk.img', MIB), name: 'disk' });
});
afterAll(() => world.close());

it('goes when nobody renews it; one without a lease, and a renewed one, stay', async () => {
  const { client } = world;
  const { id: kept } = await client.createSnapshot({ disks: ['disk'] });
  const { id: renewed } = await client.createSnapshot({ disks: ['disk'], leaseMs: LEASE_MS });
  const abandoned = await client.createSnapshot({ disks: ['disk'], leaseMs: LEASE_MS });
  expect(abandoned.leaseMs).toBe(LEASE_MS);
  const keeper = new LeaseKeeper(client, renewed, { leaseMs: LEASE_MS });
  const held = async (): Promise<string[]> => (await client.snapshots()).map(({ id }) => id).sort();
  try {
    // Made last: the other has outlived its lease when it goes.
    while ((await held()).includes(abandoned.id)) await sleep(50);
    expect(await held()).toEqual([kept, renewed].sort());
    await sleep(LEASE_MS / 2);
    expect(await held()).toEqual([kept, renewed].sort());
  } finally {
    keeper.stop();
  }
  await client.destroySnapshot(renewed);
  await client.destroySnapshot(kept);
  await expect(client.renewSnapshot(kept)).rejects.toMatchObject({ code: 'ESRCH' });
});
