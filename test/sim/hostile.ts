/** Clients that say anything to the NBD server: conversations from a grammar, mutated, cut, in pieces, unread, left half
 *  open. They know only an export of their own, so that the model of everybody else's disks holds. */

import type { Prng } from '../../src/util/prng.ts';
import { completed } from '../../src/io/reactor.ts';
import type { Stream } from '../../src/io/reactor.ts';
import { Message } from '../../src/nbd/wire.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { SimReactor } from './reactor.ts';
import type { World } from './world.ts';

export const VICTIM = 'victim';
export const VICTIM_BYTES = 256 * KIB;
const ARENA_BYTES = MIB;
const CONVERSATION_BYTES = 256 * KIB;
const NAMES = [VICTIM, VICTIM, VICTIM, '', 'nobody', 'x'.repeat(4097)];
const CONTEXTS = ['base:allocation', 'base:', 'qemu:', 'blksnap:changed:', 'z'.repeat(300)];
/** Where lengths and offsets go wrong. */
const EDGES = [0, 1, 511, 513, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, VICTIM_BYTES, VICTIM_BYTES - 512, 64 * KIB + 1];
const OPTIONS = [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 99];
const GO = 7;

function pick<T>(random: Prng, choices: readonly T[]): T {
  return choices[random.below(choices.length)]!;
}

function noise(random: Prng, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  random.fill(bytes.subarray(0));
  return bytes;
}

function option(random: Prng, kind: number): Uint8Array {
  const data = new Message();
  if (kind === 6 || kind === GO) {
    const count = random.below(3);
    data.counted(pick(random, NAMES)).u16(count);
    for (let i = 0; i < count; i++) data.u16(random.below(5));
  } else if (kind === 9 || kind === 10) {
    const count = random.below(4);
    data.counted(pick(random, NAMES)).u32(count);
    for (let i = 0; i < count; i++) data.counted(pick(random, CONTEXTS));
  } else if (random.chance(0.1)) data.raw(noise(random, random.below(64)));
  const { bytes } = data;
  const length = random.chance(0.05) ? pick(random, EDGES) : bytes.length;
  return new Message().text('IHAVEOPT').u32(kind).u32(length).raw(bytes).bytes;
}

function request(random: Prng, extended: boolean): Uint8Array {
  const command = random.below(10);
  const flags = random.chance(0.6) ? 0 : random.below(64);
  const length = random.chance(0.2) ? pick(random, EDGES) : 512 * (1 + random.below(160));
  const offset = random.chance(0.2)
    ? pick(random, EDGES) * pick(random, [1, 2 ** 20, 2 ** 32])
    : 512 * random.below(VICTIM_BYTES / 512);
  const magic = extended ? 0x21e41c71 : 0x25609513;
  const message = new Message().u32(magic).u16(flags).u16(command).u64(random.below(1000)).u64(offset);
  if (extended) message.u64(length);
  else message.u32(length);
  const payload = Math.min(length, 128 * KIB);
  return command === 1 && random.chance(0.9) ? message.raw(noise(random, payload)).bytes : message.bytes;
}

function conversation(random: Prng): Uint8Array {
  const style = pick(random, [null, 8, 11]);
  const parts = [new Message().u32(random.chance(0.95) ? pick(random, [1, 3]) : random.below(256)).bytes];
  for (let i = random.below(4); i > 0; i--) parts.push(option(random, pick(random, OPTIONS)));
  if (style !== null) parts.push(new Message().text('IHAVEOPT').u32(style).u32(0).bytes);
  const go = new Message().counted(VICTIM).u16(0).bytes;
  if (random.chance(0.9)) parts.push(new Message().text('IHAVEOPT').u32(GO).u32(go.length).raw(go).bytes);
  for (let i = random.below(20); i > 0; i--) parts.push(request(random, style === 11));
  const bytes = Buffer.concat(parts).subarray(0, CONVERSATION_BYTES);
  return random.chance(0.5) ? bytes : mutated(bytes, random);
}

function mutated(bytes: Buffer, random: Prng): Uint8Array {
  let now = bytes;
  for (let i = 1 + random.below(3); i > 0 && now.length > 8; i--) {
    // Headers are worth more than payloads: mostly near the start.
    const at = random.below(Math.min(random.chance(0.7) ? 400 : Infinity, now.length - 4));
    switch (random.below(4)) {
      case 0:
        now[at]! ^= 1 << random.below(8);
        break;
      case 1:
        now.writeUInt32BE(pick(random, EDGES), at);
        break;
      case 2:
        now = Buffer.concat([now.subarray(0, at), noise(random, random.below(40)), now.subarray(at)]);
        break;
      default:
        now = now.subarray(0, at);
    }
  }
  return now.subarray(0, CONVERSATION_BYTES);
}

/** Talks to the server for a while, and vanishes. Resolves when the server has let go of all that it had of it. */
export async function harass(world: World, random: Prng): Promise<void> {
  const { clock, weather } = world.machine;
  const ends: Array<Promise<void>> = [];
  const address = await world.serving.listen((ended) => ends.push(ended));
  const reactor = new SimReactor({ clock, weather, arenaBytes: ARENA_BYTES });
  const stream = await reactor.connect(address);
  const staying = new Promise<void>((resolve) => clock.after(null, random.below(40_000), resolve));
  await Promise.race([talk(reactor, stream, random), staying]);
  reactor.die();
  await Promise.race([Promise.all(ends), world.whenDead]);
}

async function talk(reactor: SimReactor, stream: Stream, random: Prng): Promise<void> {
  const { arena } = reactor;
  const words = conversation(random);
  const at = arena.allocate(CONVERSATION_BYTES);
  const ear = arena.allocate(64 * KIB);
  arena.bytes.set(words, at);
  if (random.chance(0.7)) void listen(stream, ear);
  const piece = random.chance(0.5) ? words.length : 1 + random.below(5000);
  for (let done = 0; done < words.length; done += piece) {
    stream.queue(at + done, Math.min(piece, words.length - done));
    if ((await completed((c) => stream.send(c))) < 0) return;
  }
  await new Promise<void>(() => {});
}

async function listen(stream: Stream, ear: number): Promise<void> {
  while ((await completed((c) => stream.receive(ear, 64 * KIB, c))) > 0);
}
