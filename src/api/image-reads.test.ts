/** Images read by clients of a daemon while others write to their origin. */

import { expect, test } from 'vitest';
import { ApiWorld } from '../../test/api-world.ts';
import { READ, WRITE, runBio } from '../block/bio.ts';
import { borrow } from '../io/files.ts';
import { MIB } from '../util/units.ts';

test('a large read right after a write to the origin is answered, whatever it finds', async () => {
  const world = await ApiWorld.open();
  const { uri } = await world.client.attach({ path: world.file('a.img', 2 * MIB), name: 'a' });
  // Half data, half a hole.
  await world.fill(uri, 0, 1, MIB);
  const { id, images } = await world.client.createSnapshot({ disks: ['a'], storage: world.directory });
  const origin = await world.connect(uri);
  const image = await world.connect(images[0]!.uri);
  const { arena } = world;
  const at = await borrow(arena, MIB);
  for (let round = 0; round < 40; round++) {
    const write = { op: WRITE, offset: ((round * 37) % 512) * 4096, length: 4096, at } as const;
    expect(await runBio(world.pool, origin, write)).toBe(0);
    const read = { op: READ, offset: (round % 3) * (MIB / 2), length: MIB, at } as const;
    expect(await runBio(world.pool, image, read)).toBe(0);
    const found = arena.bytes.subarray(at, at + MIB);
    const ones = MIB - read.offset;
    expect(
      found.subarray(0, ones).every((byte) => byte === 1) && found.subarray(ones).every((byte) => byte === 0),
    ).toBe(true);
  }
  arena.release(at);
  await image.close();
  await origin.close();
  await world.client.destroySnapshot(id);
  await world.close();
});
