/** The NBD server against clients that say anything: valid conversations, mutated, cut, sent in pieces, left
 *  half open or unread. It must serve everybody else as if nothing happened, and have nothing left at the end.
 *
 *  Seeded: BLKSNAP_SEED=n repeats a run, BLKSNAP_FUZZ_MINUTES=n makes it longer. */

import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../src/block/memory-device.ts';
import type { DriverName } from '../../src/io/open.ts';
import { Message } from '../../src/nbd/wire.ts';
import { Prng } from '../../src/util/prng.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { RawClient } from '../nbd/raw-peer.ts';
import { NbdWorld } from '../nbd/world.ts';

const SEED = Number(process.env['BLKSNAP_SEED'] ?? Date.now() % 1_000_000);
const RUN_MS = Number(process.env['BLKSNAP_FUZZ_MINUTES'] ?? 0.05) * 60_000;
const SIZE = MIB;
const NAMES = ['victim', 'fixed', '', 'none', 'x'.repeat(4097)];
/** Where lengths and offsets go wrong. */
const EDGES = [0, 1, 511, 512, 4096, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, SIZE, SIZE - 512, SIZE + 512, 64 * KIB + 1];
const OPTIONS = [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 99];
const COMMANDS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

/** One hostile client's words, and how it says them. */
class Hostile {
  readonly #prng: Prng;

  constructor(random: Prng) {
    this.#prng = random;
  }

  #one<T>(choices: readonly T[]): T {
    return choices[this.#prng.below(choices.length)]!;
  }

  #noise(length: number): Uint8Array {
    return randomBytes(this.#prng, length);
  }

  #option(): Message {
    const random = this.#prng;
    const option = this.#one(OPTIONS);
    const data = new Message();
    if (option === 6 || option === 7) {
      const count = random.below(4);
      data.counted(this.#one(NAMES)).u16(count);
      for (let i = 0; i < count; i++) data.u16(random.below(5));
    } else if (option === 9 || option === 10) {
      const count = random.below(3);
      data.counted(this.#one(NAMES)).u32(count);
      for (let i = 0; i < count; i++) data.counted(this.#one(['base:allocation', 'base:', 'qemu:', 'z'.repeat(300)]));
    } else if (random.chance(0.2)) data.raw(this.#noise(random.below(64)));
    const { bytes } = data;
    const length = random.chance(0.1) ? this.#one(EDGES) : bytes.length;
    return new Message().text('IHAVEOPT').u32(option).u32(length).raw(bytes);
  }

  #request(extended: boolean): Message {
    const random = this.#prng;
    const command = this.#one(COMMANDS);
    const flags = random.chance(0.7) ? 0 : random.below(64);
    const length = random.chance(0.3) ? this.#one(EDGES) : 512 * (1 + random.below(256));
    const offset = random.chance(0.2)
      ? this.#one(EDGES) * this.#one([1, 2 ** 20, 2 ** 32])
      : 512 * random.below(SIZE / 512);
    const message = new Message()
      .u32(extended ? 0x21e41c71 : 0x25609513)
      .u16(flags)
      .u16(command);
    message.u64(random.below(1000)).u64(offset);
    if (extended) message.u64(length);
    else message.u32(length);
    const payload = Math.min(length, 256 * KIB);
    return command === 1 && random.chance(0.9) ? message.raw(this.#noise(payload)) : message;
  }

  conversation(): Uint8Array {
    const random = this.#prng;
    const parts: Uint8Array[] = [new Message().u32(random.chance(0.95) ? this.#one([1, 3]) : random.below(256)).bytes];
    for (let i = random.below(4); i > 0; i--) parts.push(this.#option().bytes);
    const extended = random.chance(0.4);
    if (random.chance(0.9)) {
      const go = new Message().counted(this.#one(['victim', 'victim', 'fixed'])).u16(0).bytes;
      for (const option of extended ? [11] : random.chance(0.5) ? [8] : [])
        parts.push(new Message().text('IHAVEOPT').u32(option).u32(0).bytes);
      parts.push(new Message().text('IHAVEOPT').u32(7).u32(go.length).raw(go).bytes);
    }
    for (let i = random.below(30); i > 0; i--) parts.push(this.#request(extended).bytes);
    return this.#mutated(Buffer.concat(parts));
  }

  #mutated(bytes: Buffer): Uint8Array {
    const random = this.#prng;
    if (random.chance(0.4)) return bytes;
    let mutated = bytes;
    for (let i = 1 + random.below(4); i > 0 && mutated.length > 8; i--) {
      // Headers are worth more than payloads: mostly near the start.
      const at = random.chance(0.7)
        ? random.below(Math.min(400, mutated.length - 4))
        : random.below(mutated.length - 4);
      switch (random.below(5)) {
        case 0:
          mutated[at]! ^= 1 << random.below(8);
          break;
        case 1:
          mutated.writeUInt32BE(this.#one(EDGES), at);
          break;
        case 2:
          mutated = Buffer.concat([mutated.subarray(0, at), this.#noise(random.below(40)), mutated.subarray(at)]);
          break;
        case 3:
          mutated = Buffer.concat([mutated.subarray(0, at), mutated.subarray(at + random.below(40))]);
          break;
        default:
          mutated = mutated.subarray(0, random.chance(0.1) ? at : mutated.length);
      }
    }
    return mutated;
  }

  /** Says it whole or in pieces; then leaves, or stays and reads, or stays and does not. */
  async talk(client: RawClient): Promise<void> {
    const random = this.#prng;
    const words = this.conversation();
    if (random.chance(0.2)) client.socket.pause();
    const piece = random.chance(0.5) ? words.length : 1 + random.below(5000);
    for (let at = 0; at < words.length && client.socket.writable; at += piece) {
      client.send(words.subarray(at, at + piece));
      if (piece < words.length && random.chance(0.3)) await sleep(random.below(2));
    }
    if (random.chance(0.3)) client.socket.end();
  }
}

function randomBytes(prng: Prng, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  prng.fill(bytes.subarray());
  return bytes;
}

/** What everybody else sees: reads and writes of its own disk, right and in time. */
async function expectServed(good: RawClient, disk: Buffer, random: Prng): Promise<void> {
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
    const random = new Prng(SEED);
    const world = await NbdWorld.open({ driver, arenaBytes: 16 * MIB, handshakeLimitMs: 200, stallLimitMs: 100 });
    const status = {
      name: 'base:allocation',
      blockStatus: async (_at: number, length: number) => [{ length, flags: 0 }],
    };
    world.addMemory('canary', SIZE);
    world.addMemory('fixed', SIZE, { readOnly: true });
    world.add('victim', new MemoryDevice('victim', SIZE, world.reactor.arena), [status]);
    const disk = Buffer.alloc(SIZE);
    const good = await RawClient.connect(world.address.path);
    await good.greet();
    await good.go('canary');
    const others: RawClient[] = [];
    const end = Date.now() + RUN_MS / 2;
    let talks = 0;
    while (Date.now() < end) {
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
    expect(talks).toBeGreaterThan(20);
    await world.close();
  },
  RUN_MS + 60_000,
);
