/** Snapshots whose client may be killed: they go when nobody renews them, and not before. */

import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { ApiWorld } from '../../test/api-world.ts';
import { MIB } from '../util/units.ts';
import { LeaseKeeper } from './lease.ts';

const LEASE_MS = 1000;
const DEADLINE_MS = 5000;

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
    const deadline = performance.now() + DEADLINE_MS;
    while ((await held()).length === 3 && performance.now() < deadline) await sleep(50);
    expect(await held()).toEqual([kept, renewed].sort());
    // More than a lease later.
    await sleep(1.5 * LEASE_MS);
    expect(await held()).toEqual([kept, renewed].sort());
  } finally {
    keeper.stop();
  }
  await client.destroySnapshot(renewed);
  await client.destroySnapshot(kept);
  await expect(client.renewSnapshot(kept)).rejects.toMatchObject({ code: 'ESRCH' });
});
