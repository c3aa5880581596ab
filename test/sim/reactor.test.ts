/** The reactor contract, as far as it can be kept without a machine: no process, no real file, no real clock. */

import { describe, expect, it } from 'vitest';
import { ALLOCATE_PUNCH_HOLE, ALLOCATE_RESERVE, ALLOCATE_ZERO_RANGE, completed } from '../../src/io/reactor.ts';
import type { Completion, SocketAddress, Stream } from '../../src/io/reactor.ts';
import { ERRNO } from '../../src/util/errors.ts';
import { Prng } from '../../src/util/prng.ts';
import { GIB, KIB, MIB } from '../../src/util/units.ts';
import { SimClock } from './clock.ts';
import { SimReactor } from './reactor.ts';
import { VirtualFile } from './virtual-file.ts';
import { drawWeather } from './weather.ts';

function open(): { reactor: SimReactor; run: (start: (c: Completion) => void) => Promise<number> } {
  const clock = new SimClock(new Prng(5));
  clock.calm = 1;
  const reactor = new SimReactor({ clock, weather: drawWeather(1), arenaBytes: 8 * MIB });
  return { reactor, run: (start) => reactor.until(completed(start)) };
}

function openFile(reactor: SimReactor, size: number, capacityPages = Infinity): { file: VirtualFile; fd: number } {
  const file = new VirtualFile({ name: 'file', size, kept: true, capacityPages });
  return { file, fd: reactor.openFile(file) };
}

describe('files of the simulator', () => {
  it('read what was written, also beyond 4 GiB, and shortly at their end', async () => {
    const { reactor, run } = open();
    const { fd, file } = openFile(reactor, 0);
    const at = reactor.arena.allocate(8192);
    new Prng(1).fill(reactor.arena.bytes.subarray(at, at + 8192));
    const written = reactor.arena.bytes.slice(at, at + 8192);
    const offset = 5 * GIB + 512;
    expect(await run((c) => reactor.write(fd, at, 8192, offset, false, c))).toBe(8192);
    expect(file.size).toBe(offset + 8192);
    reactor.arena.bytes.fill(0, at, at + 8192);
    expect(await run((c) => reactor.read(fd, at, 8192, offset + 4096, c))).toBe(4096);
    expect(reactor.arena.bytes.slice(at, at + 4096)).toEqual(written.slice(4096));
    expect(await run((c) => reactor.read(fd, at, 512, offset + 8192, c))).toBe(0);
    expect(await run((c) => reactor.read(fd, at, 512, offset % 2 ** 32, c))).toBe(512);
    expect(reactor.arena.bytes.subarray(at, at + 512).every((byte) => byte === 0)).toBe(true);
  });

  it('take segments in order, and the end of a place', async () => {
    const { reactor, run } = open();
    const { fd, file } = openFile(reactor, 0, 2);
    const at = reactor.arena.allocate(3 * 4096);
    for (let i = 0; i < 3; i++) reactor.arena.bytes.fill(i + 1, at + i * 4096, at + (i + 1) * 4096);
    const segments = Float64Array.of(at + 8192, 100, at, 3);
    expect(await run((c) => reactor.writeGather(fd, segments, 2, 10, c))).toBe(103);
    const got = new Uint8Array(103);
    file.read(10, got);
    expect([got[0], got[99], got[100], got[102]]).toEqual([3, 3, 1, 1]);
    expect(await run((c) => reactor.write(fd, at, 3 * 4096, 0, false, c))).toBeLessThan(3 * 4096);
    expect(await run((c) => reactor.write(fd, at, 4096, 8192, false, c))).toBe(-ERRNO.ENOSPC);
    expect(await run((c) => reactor.allocate(fd, ALLOCATE_RESERVE, 8192, 4096, c))).toBe(-ERRNO.ENOSPC);
  });

  it('have holes where they are punched, and zeros where they are zeroed', async () => {
    const { reactor, run } = open();
    const { fd, file } = openFile(reactor, 0);
    const at = reactor.arena.allocate(4 * 4096);
    reactor.arena.bytes.fill(7, at, at + 4 * 4096);
    await run((c) => reactor.write(fd, at, 4 * 4096, 0, false, c));
    expect(await run((c) => reactor.allocate(fd, ALLOCATE_PUNCH_HOLE, 4096, 4096, c))).toBe(0);
    expect(await run((c) => reactor.allocate(fd, ALLOCATE_ZERO_RANGE, 8192, 100, c))).toBe(0);
    expect([file.dataFrom(4096, 16384), file.dataUntil(0, 16384)]).toEqual([8192, 4096]);
    const got = new Uint8Array(4 * 4096);
    file.read(0, got);
    expect([got[4095], got[4096], got[8191], got[8192], got[8291], got[8292]]).toEqual([7, 0, 0, 0, 0, 7]);
  });

  it('keep over a power loss what was synced, and of the rest what chance has it', async () => {
    const { reactor, run } = open();
    const { fd, file } = openFile(reactor, 0);
    const at = reactor.arena.allocate(64 * KIB);
    reactor.arena.bytes.fill(1, at, at + 64 * KIB);
    await run((c) => reactor.write(fd, at, 64 * KIB, 0, false, c));
    expect(await run((c) => reactor.sync(fd, c))).toBe(0);
    reactor.arena.bytes.fill(2, at, at + 64 * KIB);
    await run((c) => reactor.write(fd, at, 64 * KIB, 0, false, c));
    expect(await run((c) => reactor.write(fd, at, 4096, 0, true, c))).toBe(4096);
    file.losePower(new Prng(3));
    const got = new Uint8Array(64 * KIB);
    file.read(0, got);
    expect(got.subarray(0, 4096).every((byte) => byte === 2)).toBe(true);
    expect(new Set(got.subarray(4096))).toEqual(new Set([1, 2]));
  });

  it('end operations later, and on bad descriptors with EBADF', async () => {
    const { reactor, run } = open();
    const { fd } = openFile(reactor, 4096);
    const at = reactor.arena.allocate(4096);
    const later = (start: (c: Completion) => void): Promise<number> => {
      let returned = false;
      const result = run((c) => {
        start({
          complete(value) {
            expect(returned).toBe(true);
            c.complete(value);
          },
        });
        returned = true;
      });
      return result;
    };
    expect(await later((c) => reactor.read(fd, at, 512, 0, c))).toBe(512);
    expect(await later((c) => reactor.write(fd, at, 512, 0, true, c))).toBe(512);
    expect(await later((c) => reactor.sync(fd, c))).toBe(0);
    expect(await later((c) => void reactor.timer(0, c))).toBe(0);
    for (const bad of [-1, 999_999]) expect(await later((c) => reactor.read(bad, at, 512, 0, c))).toBe(-ERRNO.EBADF);
    expect(reactor.inFlight).toBe(0);
  });
});

describe('time of the simulator', () => {
  it('fires timers in order, and none that was cancelled, also by one that is due with it', async () => {
    const { reactor, run } = open();
    const fired: number[] = [];
    for (const delayMs of [30, 5, 60, 15]) reactor.timer(delayMs, { complete: () => fired.push(delayMs) });
    reactor.cancelTimer(reactor.timer(20, { complete: () => fired.push(20) }));
    reactor.cancelTimer(12_345);
    const handles: number[] = [];
    for (const other of [1, 0]) {
      const complete = (): void => {
        fired.push(7);
        reactor.cancelTimer(handles[other]!);
      };
      handles.push(reactor.timer(7, { complete }));
    }
    await run((c) => void reactor.timer(61, c));
    expect(fired).toEqual([5, 7, 15, 30, 60]);
    expect(reactor.now()).toBe(61);
  });

  it('runs hooks after the completions of a turn, and says when somebody waits in vain', async () => {
    const { reactor, run } = open();
    const seen: string[] = [];
    reactor.onTurnEnd(() => seen.push('hook'));
    await run((c) => void reactor.timer(1, { complete: (n) => (seen.push('timer'), c.complete(n)) }));
    expect(seen).toEqual(['timer', 'hook']);
    await expect(reactor.until(new Promise(() => {}))).rejects.toThrow('nothing is under way');
  });
});

describe('sockets of the simulator', () => {
  const address: SocketAddress = { kind: 'unix', path: 'socket' };

  it('carry bytes both ways in order, and end', async () => {
    const { reactor, run } = open();
    let theirs: Stream | undefined;
    const listener = await reactor.listen(address, {}, (stream) => (theirs = stream));
    const ours = await reactor.until(reactor.connect(address));
    const [a, b] = [reactor.arena.allocate(MIB), reactor.arena.allocate(MIB)];
    new Prng(9).fill(reactor.arena.bytes.subarray(a, a + MIB));
    expect([ours.queue(a + 1000, MIB - 1000), ours.queue(a, 1000)]).toEqual([true, true]);
    const sent = completed((c) => ours.send(c));
    expect(await run((c) => theirs!.receiveAll(b, MIB, c))).toBe(MIB);
    expect(await sent).toBe(MIB);
    const { bytes } = reactor.arena;
    expect(Buffer.compare(bytes.slice(b, b + MIB - 1000), bytes.slice(a + 1000, a + MIB))).toBe(0);
    expect(Buffer.compare(bytes.slice(b + MIB - 1000, b + MIB), bytes.slice(a, a + 1000))).toBe(0);
    const pending = completed((c) => ours.receive(a, 10, c));
    theirs!.close();
    expect(await reactor.until(pending)).toBe(0);
    const cancelled = completed((c) => ours.receive(a, 10, c));
    ours.close();
    expect(await reactor.until(cancelled)).toBeLessThanOrEqual(0);
    listener.close();
    await expect(reactor.until(reactor.connect(address))).rejects.toThrow('nobody listens');
    await reactor.close();
  });

  it('refuse an address in use', async () => {
    const { reactor } = open();
    await reactor.listen(address, {}, () => {});
    await expect(reactor.listen(address, {}, () => {})).rejects.toThrow('in use');
  });
});
