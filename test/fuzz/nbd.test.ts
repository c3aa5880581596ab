/** The NBD server against several hostile clients at once: valid conversations, mutated, cut, sent in pieces, left
 *  half open or unread. It must serve everybody else as if nothing happened, and have nothing left at the end.
 *
 *  Seeded: BLKSNAP_SEED=n repeats a run, BLKSNAP_FUZZ_MINUTES=n makes it longer. */

import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../src/block/memory-device.ts';
import type { DriverName } from '../../src/io/open.ts';
import { MIB } from '../../src/util/units.ts';
import { RawClient } from '../nbd/raw-peer.ts';
import { NbdWorld } from '../nbd/world.ts';
import { Draw } from './draw.ts';
import { mutate } from './mutate.ts';
import { conversation } from './targets/nbd-words.ts';

const SEED = Number(process.env['BLKSNAP_SEED'] ?? Date.now() % 1_000_000);
const RUN_MS = Number(process.env['BLKSNAP_FUZZ_MINUTES'] ?? 0.05) * 60_000;
const SIZE = MIB;

/** One hostile client, and how it says its words. */
class Hostile {
  readonly #draw: Draw;

  constructor(draw: Draw) {
    this.#draw = draw;
  }

  /** Says it whole or in pieces; then leaves, or stays and reads, or stays and does not. */
  async talk(client: RawClient): Promise<void> {
    const random = this.#draw;
    const said = conversation(random, SIZE);
    const words = random.chance(0.4) ? said : mutate(random, said, []);
    if (random.chance(0.2)) client.socket.pause();
    const piece = random.chance(0.5) ? words.length : 1 + random.below(5000);
    for (let at = 0; at < words.length && client.socket.writable; at += piece) {
      client.send(words.subarray(at, at + piece));
      if (piece < words.length && random.chance(0.3)) await sleep(random.below(2));
    }
    if (random.chance(0.3)) client.socket.end();
  }
}

/** A client in transmission. Its handshake has a short limit here, which a machine that stalls may pass: then another. */
async function connected(world: NbdWorld): Promise<RawClient> {
  for (;;) {
    const client = await RawClient.connect(world.address.path);
    const agreed = client.greet().then(() => client.go('canary'));
    const arrived = await agreed.then(
      () => true,
      () => false,
    );
    if (arrived) return client;
    client.close();
  }
}

/** What everybody else sees: reads and writes of its own disk, right and in time. */
async function expectServed(good: RawClient, disk: Buffer, random: Draw): Promise<void> {
  const length = 512 * (1 + random.below(64));
  const offset = 512 * random.below((SIZE - length) / 512);
  const data = disk.subarray(offset, offset + length);
  random.fill(data);
  good.request(1, offset, length);
  good.send(data);
  expect(await good.simple()).toEqual({ error: 0, cookie: 1 });
  good.request(0, 0, SIZE, { cookie: 2 });
  expect(await good.simple()).toEqual({ error: 0, cookie: 2 });
  expect((await good.read(SIZE)).equals(disk)).toBe(true);
}

test.each<DriverName>(['uring', 'portable'])(
  `the server outlives hostile clients, %s driver (seed ${SEED})`,
  async (driver) => {
    const random = new Draw(SEED);
    const world = await NbdWorld.open({ driver, arenaBytes: 16 * MIB, handshakeLimitMs: 200, stallLimitMs: 100 });
    const status = {
      name: 'base:allocation',
      blockStatus: async (_at: number, length: number) => [{ length, flags: 0 }],
    };
    world.addMemory('canary', SIZE);
    world.addMemory('fixed', SIZE, { readOnly: true });
    world.add('victim', new MemoryDevice('victim', SIZE, world.reactor.arena), [status]);
    const disk = Buffer.alloc(SIZE);
    const good = await connected(world);
    const others: RawClient[] = [];
    const end = Date.now() + RUN_MS / 2;
    let talks = 0;
    // On a slow machine it takes longer.
    while (Date.now() < end || talks <= 20) {
      const batch = await Promise.all(
        Array.from({ length: 1 + random.below(6) }, () => RawClient.connect(world.address.path)),
      );
      others.push(...batch);
      await Promise.all(batch.map((client) => new Hostile(random).talk(client)));
      talks += batch.length;
      await expectServed(good, disk, random);
      // Some stay: half open, unread, or waiting for an answer that never comes.
      while (others.length > 8) others.splice(random.below(others.length), 1)[0]!.close();
    }
    for (const client of others) client.close();
    good.close();
    await world.close();
  },
  RUN_MS + 60_000,
);
