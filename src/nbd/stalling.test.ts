/** Who loses its connection because it holds memory that others wait for, and who does not: in virtual time. */

import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { SimClock } from '../../test/sim/clock.ts';
import { SimReactor } from '../../test/sim/reactor.ts';
import { drawWeather } from '../../test/sim/weather.ts';
import { BioPool } from '../block/bio.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { completed } from '../io/reactor.ts';
import type { Stream } from '../io/reactor.ts';
import { Prng } from '../util/prng.ts';
import { KIB, MIB } from '../util/units.ts';
import { CMD_READ, CMD_WRITE, OPT_EXPORT_NAME } from './protocol.ts';
import { NbdServer } from './server.ts';
import { Message } from './wire.ts';

const ARENA_BYTES = 8 * MIB;
/** What one client may have under way, and half of what all may: two clients hold it all. */
const SHARE = 2 * MIB;
const ADDRESS = { kind: 'unix', path: 'nbd' } as const;
const STALL_S = 10;
const LATEST_S = 13;

const clock = new SimClock(new Prng(1));
clock.calm = 1;
const weather = drawWeather(1);
let machine: SimReactor;
let peers: SimReactor;
let server: NbdServer;
let device: MemoryDevice;
let dropped: string[];
const streams: Stream[] = [];

beforeEach(async () => {
  machine = new SimReactor({ clock, weather, arenaBytes: ARENA_BYTES });
  peers = new SimReactor({ clock, weather, arenaBytes: 64 * MIB });
  device = new MemoryDevice('disk', 4 * MIB, machine.arena);
  dropped = [];
  const served = { name: 'disk', description: '', device, contexts: () => [] };
  const exports = { find: () => served, list: () => [served] };
  const onDropped = (reason: string): void => void dropped.push(reason);
  server = new NbdServer({ reactor: machine, pool: new BioPool(), exports, onDropped });
  await clock.until(server.listen(ADDRESS));
});
afterEach(async () => {
  for (const stream of streams.splice(0)) stream.close();
  await clock.until(server.close());
  await clock.until(device.close());
  await clock.settle();
  expect(machine.arena.lentBytes).toBe(0);
  machine.leave();
  peers.die();
});

/** A client in transmission that has said `words`, and receives nothing. */
async function say(...words: readonly Message[]): Promise<Stream> {
  const stream = await clock.until(peers.connect(ADDRESS));
  streams.push(stream);
  const hello = new Message().u32(3).text('IHAVEOPT').u32(OPT_EXPORT_NAME).u32(4).text('disk');
  const bytes = Buffer.concat([hello, ...words].map((message) => message.bytes));
  const at = peers.arena.allocate(bytes.length);
  peers.arena.bytes.set(bytes, at);
  stream.queue(at, bytes.length);
  await clock.until(completed((c) => stream.send(c)));
  await clock.until(rest(0.1));
  return stream;
}

function request(command: number, length: number): Message {
  return new Message().u32(0x25609513).u16(0).u16(command).u64(1).u64(0).u32(length);
}

function rest(seconds: number): Promise<void> {
  return new Promise((resolve) => void clock.after(null, seconds * 1e6, resolve));
}

/** Takes a reply with its data, in portions of 64 KiB with a rest before each; whether it came whole. */
async function take(stream: Stream, length: number, restSeconds = 0): Promise<boolean> {
  const at = peers.arena.allocate(64 * KIB);
  for (let left = 18 + 10 + 16 + length; left > 0; left -= 64 * KIB) {
    if (restSeconds > 0) await rest(restSeconds);
    const result = await completed((c) => stream.receiveAll(at, Math.min(left, 64 * KIB), c));
    if (result <= 0) return false;
  }
  return true;
}

describe('while nobody waits for memory', () => {
  it('clients that stand still keep their connections', async () => {
    await say(request(CMD_READ, SHARE));
    await say(request(CMD_WRITE, SHARE), new Message().raw(new Uint8Array(300_000)));
    await clock.until(rest(100));
    expect(dropped).toEqual([]);
  });
});

describe('while others wait for memory', () => {
  it.each([
    ['take no replies', request(CMD_READ, SHARE), new Message()],
    ['stop in the middle of a write', request(CMD_WRITE, SHARE), new Message().raw(new Uint8Array(1_300_000))],
  ])('clients that %s lose their connections, and the others get it', async (_what, asked, payload) => {
    // A piece at a time is lent for a write: four of them hold it all.
    const count = payload.bytes.length > 0 ? 4 : 2;
    for (let i = 0; i < count; i++) await say(asked, payload);
    await clock.until(rest(100));
    const began = clock.nowUs;
    const busy = await say(request(CMD_READ, SHARE));
    expect(await clock.until(take(busy, SHARE))).toBe(true);
    expect(dropped).toEqual(Array(count).fill('the client stood still while others waited for memory'));
    expect((clock.nowUs - began) / 1e6).toBeGreaterThanOrEqual(STALL_S);
    expect((clock.nowUs - began) / 1e6).toBeLessThan(LATEST_S);
  });

  it('a slow client that takes 1 MiB in 9 seconds keeps its connection', async () => {
    const slow = [await say(request(CMD_READ, SHARE)), await say(request(CMD_READ, SHARE))];
    const busy = await say(request(CMD_READ, SHARE));
    const took = [...slow.map((each) => take(each, SHARE, 9 / 16)), take(busy, SHARE)];
    expect(await clock.until(Promise.all(took))).toEqual([true, true, true]);
    expect(dropped).toEqual([]);
  });

  it('a machine that stood still itself blames nobody', async () => {
    const clients: Stream[] = [];
    for (let i = 0; i < 3; i++) clients.push(await say(request(CMD_READ, SHARE)));
    clock.halt(machine, 60e6);
    expect(await clock.until(Promise.all(clients.map((each) => take(each, SHARE))))).toEqual([true, true, true]);
    expect(dropped).toEqual([]);
  });

  it('who is idle, also in the middle of a header, keeps its connection', async () => {
    await say(new Message());
    await say(new Message().raw(request(CMD_READ, 512).bytes.subarray(0, 13)));
    await say(request(CMD_READ, SHARE));
    await say(request(CMD_READ, SHARE));
    const busy = await say(request(CMD_READ, SHARE));
    expect(await clock.until(take(busy, SHARE))).toBe(true);
    expect(dropped).toHaveLength(2);
    expect(server.connections).toBe(3);
  });
});
