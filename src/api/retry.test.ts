/** A disk that could not be attached at the daemon's start is tried again by its path alone. */

import fs from 'node:fs';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { ApiWorld } from '../../test/api-world.ts';
import { MIB } from '../util/units.ts';

let world: ApiWorld;
beforeAll(async () => {
  world = await ApiWorld.open();
});
afterAll(() => world.close());

it('comes back under its own name', async () => {
  const path = world.file('plain.img', MIB);
  await world.client.attach({ path, name: 'named' });
  await world.stop();
  fs.renameSync(path, `${path}.away`);
  await world.start();
  expect(await world.client.disk('named')).toMatchObject({ state: 'failed' });
  fs.renameSync(`${path}.away`, path);
  expect(await world.client.attach({ path })).toMatchObject({ name: 'named', state: 'attached' });
  expect(await world.client.disks()).toHaveLength(1);
});
