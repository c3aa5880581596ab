/** A daemon with as many clients as it takes, each with a range of its own, with large arena and small; and without descriptors
 *  for more. Prints what it measures, for docs/reliability.md. */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Embedded } from '../../src/index.ts';
import type { Bytes } from '../../src/index.ts';
import { KIB } from '../../src/util/units.ts';
import { DaemonWorld } from '../daemon/world.ts';
import { RawClient } from '../nbd/raw-peer.ts';
import { requirePrograms } from '../requirements.ts';
import { residentBytes } from './resident.ts';

const RANGE = 128 * KIB;
const ROUNDS = 2;
/** Descriptors that are left to a daemon that runs out of them, and clients that want one. */
const SPARE = 10;
const CROWD = 40;

let world: DaemonWorld;
let embedded: Embedded;
beforeEach(async () => {
  world = new DaemonWorld();
  embedded = await Embedded.open();
});
afterEach(async () => {
  await embedded.close();
  await world.close();
});

function socket(): string {
  return path.join(world.dir, 'nbd.sock');
}

function connect(name: string): Promise<Bytes> {
  return embedded.openExport(`nbd+unix:///${name}?socket=${socket()}`);
}

function content(client: number, round: number, length: number): Buffer {
  const data = Buffer.alloc(length);
  for (let at = 0; at < length; at += 8) {
    data.writeUInt32LE(client * ROUNDS + round + 1, at);
    data.writeUInt32LE(at, at + 4);
  }
  return data;
}

/** Small writes side by side, then a large one across them, all read back. */
async function work(client: Bytes, number: number): Promise<void> {
  for (let round = 0; round < ROUNDS; round++) {
    const data = content(number, round, RANGE);
    const at = number * RANGE;
    const small = Array.from({ length: 12 }, (_, i) => i * 4 * KIB);
    await Promise.all(small.map((offset) => client.write(at + offset, data.subarray(offset, offset + 4 * KIB))));
    await client.write(at + 48 * KIB, data.subarray(48 * KIB));
    expect((await client.read(at, RANGE)).equals(data)).toBe(true);
  }
}

const ARENAS = [
  ['128M', 256, []],
  ['16M', 40, ['--copy-memory', '1M']],
] as const;

describe.each(ARENAS)('an arena of %s', (arena, count, more) => {
  it(`serves ${count} clients at once, refuses one more, and takes it when one has left`, async () => {
    const image = world.image('disk.img', count * RANGE);
    await world.start(image, '--arena', arena, ...more);
    const before = residentBytes(world.daemon!.child.pid!);
    const begin = performance.now();
    const clients = await Promise.all(Array.from({ length: count }, () => connect('disk')));
    const connected = performance.now();
    await Promise.all(clients.map(work));
    const ended = performance.now();
    const resident = residentBytes(world.daemon!.child.pid!);
    await expect(connect('disk')).rejects.toThrow();
    await clients[0]!.close();
    await expect
      .poll(() =>
        connect('disk').then(
          (client) => client.size,
          () => 0,
        ),
      )
      .toBe(count * RANGE);
    const bytes = fs.readFileSync(image);
    for (let i = 0; i < count; i++) {
      expect(bytes.subarray(i * RANGE, (i + 1) * RANGE).equals(content(i, ROUNDS - 1, RANGE))).toBe(true);
    }
    const times = `connected in ${(connected - begin).toFixed(0)} ms, ${ROUNDS} rounds in ${(ended - connected).toFixed(0)} ms`;
    const sizes = `resident ${(before / 2 ** 20).toFixed(0)} MiB before, ${(resident / 2 ** 20).toFixed(0)} MiB with them`;
    console.log(`${count} clients, arena ${arena}: ${times}; ${sizes}`);
  });
});

it('goes on without descriptors, and takes clients again when there are some', async (context) => {
  requirePrograms(context, 'prlimit');
  await world.start(world.image('disk.img', 16 * RANGE));
  const client = await connect('disk');
  const pid = world.daemon!.child.pid!;
  const open = new Set(fs.readdirSync(`/proc/${pid}/fd`).map(Number));
  let limit = 0;
  for (let free = 0; free < SPARE; limit++) if (!open.has(limit)) free++;
  expect(spawnSync('prlimit', ['--pid', String(pid), `--nofile=${limit}:${limit}`]).status).toBe(0);
  const crowd = await Promise.all(Array.from({ length: CROWD }, () => RawClient.connect(socket())));
  const greeted = { count: 0 };
  const greetings = crowd.map((one) =>
    one.read(18).then(
      () => greeted.count++,
      () => {},
    ),
  );
  await expect.poll(() => fs.readdirSync(`/proc/${pid}/fd`).length).toBe(open.size + SPARE);
  await work(client, 1);
  await expect.poll(() => greeted.count).toBeGreaterThan(0);
  expect(greeted.count).toBeLessThan(CROWD);
  for (const one of crowd) one.close();
  await Promise.all(greetings);
  await work(await connect('disk'), 2);
  await work(client, 3);
  expect((await world.client.status()).disks).toBe(1);
  expect(world.daemon!.running).toBe(true);
});
