/** Many clients that read no replies, stop in the middle of a header or a write or a handshake, or vanish: memory stays
 *  bounded, honest clients go on, and nothing is left of them. On both drivers. */

import { afterEach, describe, expect, it } from 'vitest';
import { Embedded } from '../../src/index.ts';
import type { Bytes } from '../../src/index.ts';
import { chooseDriver } from '../../src/io/open.ts';
import type { DriverName } from '../../src/io/open.ts';
import { CMD_READ, CMD_WRITE } from '../../src/nbd/protocol.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { RawClient } from '../nbd/raw-peer.ts';
import { NbdWorld } from '../nbd/world.ts';

const ARENA_BYTES = 16 * MIB;
/** What one client may have under way: a quarter of what all may. */
const SHARE = 4 * MIB;
const STALL_LIMIT_MS = 1000;
const OF_EACH = 6;
const HONEST = 3;
const ROUNDS = 20;
const STOOD_STILL = 'the client stood still while others waited for memory';
const PLACE = 128 * KIB;

let embedded: Embedded;
let world: NbdWorld;
const rude: RawClient[] = [];
afterEach(async () => {
  for (const client of rude.splice(0)) client.close();
  await embedded.close();
  // Counts what is left of memory and descriptors.
  await world.close();
});

async function connect(): Promise<RawClient> {
  const client = await RawClient.connect(world.address.path);
  rude.push(client);
  await client.greet();
  return client;
}

const RUDE: Record<string, (client: RawClient) => void> = {
  'reads no replies': (client) => {
    client.socket.pause();
    for (let i = 0; i < 50; i++) client.request(CMD_READ, 0, SHARE);
  },
  'stops in the middle of a header': (client) => client.send(Buffer.from([0x25, 0x60, 0x95])),
  'stops in the middle of a write': (client) => {
    client.request(CMD_WRITE, SHARE, SHARE);
    client.send(Buffer.alloc(SHARE - 300_000));
  },
  'vanishes in the middle of requests': (client) => {
    client.socket.pause();
    for (let i = 0; i < 50; i++) client.request(CMD_READ, 0, PLACE);
    client.request(CMD_WRITE, SHARE, SHARE);
    client.send(Buffer.alloc(PLACE));
    client.close();
  },
};

/** Writes and reads back what it wrote. */
async function work(client: Bytes, at: number): Promise<void> {
  for (let round = 1; round <= ROUNDS; round++) {
    const data = Buffer.alloc(PLACE, round);
    await client.write(at, data);
    expect((await client.read(at, PLACE)).equals(data)).toBe(true);
  }
}

describe.each(['uring', 'portable'] as const)('on the %s driver', (driver: DriverName) => {
  it(`${5 * OF_EACH} clients that misbehave take nothing for good`, async (context) => {
    const choice = await chooseDriver();
    context.skip(driver === 'uring' && choice.driver !== 'uring', choice.reason);
    world = await NbdWorld.open({ driver, arenaBytes: ARENA_BYTES, stallLimitMs: STALL_LIMIT_MS });
    embedded = await Embedded.open({ driver: 'portable' });
    world.addMemory('disk', 2 * SHARE + HONEST * PLACE);
    const uri = world.uri('disk');
    const honest = await Promise.all(Array.from({ length: HONEST }, () => embedded.openExport(uri)));

    const half = await Promise.all(Array.from({ length: OF_EACH }, connect)); // in the handshake
    for (const misbehave of Object.values(RUDE)) {
      for (let i = 0; i < OF_EACH; i++) {
        const client = await connect();
        await client.go('disk');
        misbehave(client);
      }
    }
    const began = performance.now();
    await Promise.all(honest.map((client, i) => work(client, 2 * SHARE + i * PLACE)));
    const tookMs = performance.now() - began;

    expect(world.reactor.arena.lentBytes).toBeLessThanOrEqual((ARENA_BYTES * 3) / 4);
    expect(world.dropped.filter((reason) => reason === STOOD_STILL).length).toBeGreaterThanOrEqual(OF_EACH);
    expect(half.every((client) => client.socket.readyState === 'open')).toBe(true);
    console.log(`${driver}: ${tookMs.toFixed(0)} ms, ${world.dropped.length} dropped`);
  });
});
