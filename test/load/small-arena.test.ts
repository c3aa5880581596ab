/** An arena that hardly holds four clients, on both drivers. */

import { afterEach, describe, expect, it } from 'vitest';
import { Embedded } from '../../src/index.ts';
import { chooseDriver } from '../../src/io/open.ts';
import type { DriverName } from '../../src/io/open.ts';
import { MIB } from '../../src/util/units.ts';
import { RawClient } from '../nbd/raw-peer.ts';
import { NbdWorld } from '../nbd/world.ts';
import type { WorldOptions } from '../nbd/world.ts';

let embedded: Embedded | null = null;
let world: NbdWorld | null = null;
afterEach(async () => {
  await embedded?.close();
  await world?.close();
  embedded = world = null;
});

async function open(options: WorldOptions): Promise<NbdWorld> {
  world = await NbdWorld.open(options);
  world.addMemory('disk', 4 * MIB);
  embedded = await Embedded.open({ driver: 'portable' });
  return world;
}

describe.each(['uring', 'portable'] as const)('on the %s driver', (driver: DriverName) => {
  it('an arena of 1 MiB serves four clients, and no more', async (context) => {
    const choice = await chooseDriver();
    context.skip(driver === 'uring' && choice.driver !== 'uring', choice.reason);
    const { reactor, address, dropped, uri } = await open({ driver, arenaBytes: MIB }).then((opened) => ({
      reactor: opened.reactor,
      address: opened.address,
      dropped: opened.dropped,
      uri: opened.uri('disk'),
    }));
    const clients = await Promise.all([0, 1, 2, 3].map(() => embedded!.openExport(uri)));
    expect(await (await RawClient.connect(address.path)).end()).toHaveLength(0);
    expect(dropped).toEqual(['more than 4 connections']);
    // Four buffers, and a driver's 16 KiB for each stream.
    expect(reactor.arena.lentBytes).toBeLessThanOrEqual(MIB / 2);
    const began = performance.now();
    await Promise.all(
      clients.map(async (client, i) => {
        for (let round = 0; round < 4; round++) {
          const data = Buffer.alloc(MIB, 16 * i + round);
          await client.write(i * MIB, data);
          expect((await client.read(i * MIB, MIB)).equals(data)).toBe(true);
        }
      }),
    );
    console.log(`${driver}: 4 clients wrote and read 16 MiB in ${(performance.now() - began).toFixed(0)} ms`);
    await expect.poll(() => reactor.arena.lentBytes).toBeLessThanOrEqual(MIB / 2);
  });
});
