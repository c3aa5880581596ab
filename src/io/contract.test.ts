/** Both drivers keep the reactor contract. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { MessageChannel } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { reactorContract } from '../../test/contracts/reactor.ts';
import { openDescriptors } from '../../test/contracts/reactor-bench.ts';
import { KIB, MIB } from '../util/units.ts';
import { NO_MEMORY } from './arena.ts';
import { onTmpfs } from './files.ts';
import { chooseDriver, openReactor } from './open.ts';
import { completed } from './reactor.ts';
import type { Stream } from './reactor.ts';

const arenaBytes = 32 * MIB;
const choice = await chooseDriver();

describe('portable', () => reactorContract(() => openReactor({ driver: 'portable', arenaBytes })));

describe('uring', () => {
  if (choice.driver === 'uring') reactorContract(() => openReactor({ driver: 'uring', arenaBytes, cooperative: true }));
  else it('keeps the reactor contract', (context) => context.skip(choice.reason));
});

it('uring opens nothing when its arena is full', async (context) => {
  context.skip(choice.driver !== 'uring', choice.reason);
  const reactor = await openReactor({ driver: 'uring', arenaBytes: MIB });
  const descriptors = openDescriptors();
  const places: number[] = [];
  for (let length = MIB; length >= 1; length /= 2) {
    for (let at = reactor.arena.allocate(length); at !== NO_MEMORY; at = reactor.arena.allocate(length))
      places.push(at);
  }
  const { port1 } = new MessageChannel();
  expect(() => reactor.onMessages(port1, () => {})).toThrow(/arena is full/);
  const address = { kind: 'tcp', host: '127.0.0.1', port: 9 } as const;
  await expect(reactor.connect(address)).rejects.toMatchObject({ code: 'ENOMEM' });
  expect(openDescriptors()).toBe(descriptors);
  for (const at of places) reactor.arena.release(at);
  port1.close();
  await reactor.close();
});

it('a large send of uring over a unix socket does not wait until it is read', async (context) => {
  context.skip(choice.driver !== 'uring', choice.reason);
  const reactor = await openReactor({ driver: 'uring', arenaBytes: 4 * MIB, cooperative: true });
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-send-'));
  const streams: Stream[] = [];
  const listener = await reactor.listen({ kind: 'unix', path: path.join(directory, 's') }, {}, (one) =>
    streams.push(one),
  );
  streams.push(await reactor.connect(listener.address));
  await expect.poll(() => streams.length).toBe(2);
  // What every system allows; as root, more.
  const length = 300 * KIB;
  const at = reactor.arena.allocate(length);
  for (const stream of streams) {
    stream.queue(at, length);
    expect(await completed((done) => stream.send(done))).toBe(length);
  }
  for (const stream of streams) stream.close();
  listener.close();
  reactor.arena.release(at);
  await reactor.close();
  fs.rmSync(directory, { recursive: true });
});

it('uring reads what is in the page cache on its own thread, which asks no worker', async (context) => {
  context.skip(choice.driver !== 'uring', choice.reason);
  context.skip(onTmpfs(os.tmpdir()), 'needs a file system on a disk: TMPDIR is in memory');
  context.skip(!fs.existsSync('/proc/thread-self/io'), 'needs the kernel to count what a thread reads');
  const reactor = await openReactor({ driver: 'uring', arenaBytes: MIB, cooperative: true });
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-cached-'));
  fs.writeFileSync(path.join(directory, 'a'), new Uint8Array(MIB));
  const fd = fs.openSync(path.join(directory, 'a'), 'r');
  const at = reactor.arena.allocate(4 * KIB);
  // What the thread's own calls have read; the ring's reads are not among it.
  const readByCalls = (): number => Number(/rchar: (\d+)/.exec(fs.readFileSync('/proc/thread-self/io', 'utf8'))![1]);
  // A turn that took long, on a busy machine, leaves the next ones to the ring for a moment.
  await expect
    .poll(async () => {
      const before = readByCalls();
      let again = true;
      for (let i = 0; i < 100; i++) {
        const read = completed((c) => (again &&= reactor.readIfCached(fd, at, 4 * KIB, i * 4 * KIB, c)));
        expect(await read).toBe(4 * KIB);
      }
      return [again, Math.floor((readByCalls() - before) / (400 * KIB))];
    })
    .toEqual([true, 1]);
  fs.closeSync(fd);
  reactor.arena.release(at);
  await reactor.close();
  fs.rmSync(directory, { recursive: true });
});

describe('openReactor', () => {
  it('takes the driver that works here', async () => {
    const reactor = await openReactor({ arenaBytes: MIB, cooperative: true });
    expect(reactor.driver).toBe(choice.driver);
    expect(choice.driver === 'uring').toBe(choice.reason === '');
    await reactor.close();
  });

  it('takes the one that is asked for', async () => {
    const reactor = await openReactor({ driver: 'portable', arenaBytes: MIB });
    expect(reactor.driver).toBe('portable');
    await reactor.close();
  });
});
