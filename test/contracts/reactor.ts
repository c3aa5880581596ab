/** The reactor contract as tests: every driver runs them all. */

import { once } from 'node:events';
import { MessageChannel, Worker } from 'node:worker_threads';
import fs from 'node:fs';
import { describe, expect, it } from 'vitest';
import { commandContract } from './reactor-commands.ts';
import { fileContract } from './reactor-files.ts';
import { reactorBench } from './reactor-bench.ts';
import type { OpenReactor } from './reactor-bench.ts';
import { streamContract } from './reactor-streams.ts';

export function reactorContract(open: OpenReactor): void {
  fileContract(open);
  describe('streams', () => streamContract(open));
  describe('device commands', () => commandContract(open));
  describe('time and messages', () => timeContract(open));
}

function timeContract(open: OpenReactor): void {
  const bench = reactorBench(open);

  it('timers fire in the order of their times, not before them', async () => {
    const { reactor, run } = bench();
    const fired: Array<{ from: number; until: number }> = [];
    await Promise.all(
      [120, 20, 240, 60].map(async (delayMs) => {
        // A busy machine may halt us between one start and the next: the times are what counts.
        const from = performance.now() + delayMs - 1.5;
        const ended = run((c) => void reactor.timer(delayMs, c));
        const until = performance.now() + delayMs + 1.5;
        expect(await ended).toBe(0);
        expect(performance.now()).toBeGreaterThan(from);
        fired.push({ from, until });
      }),
    );
    for (const [i, one] of fired.entries()) {
      for (const later of fired.slice(i + 1)) expect(one.from).toBeLessThan(later.until);
    }
    expect(fired).toHaveLength(4);
  });

  it('a cancelled timer never fires', async () => {
    const { reactor, run } = bench();
    let fired = 0;
    const handle = reactor.timer(10, { complete: () => fired++ });
    reactor.cancelTimer(handle);
    await run((c) => void reactor.timer(30, c));
    reactor.cancelTimer(handle);
    reactor.cancelTimer(12345);
    expect(fired).toBe(0);
  });

  it('a timer can cancel one that is due with it', async () => {
    const { reactor, run } = bench();
    let fired = 0;
    const handles: number[] = [];
    for (const other of [1, 0]) {
      const complete = (): void => {
        fired++;
        reactor.cancelTimer(handles[other]!);
      };
      handles.push(reactor.timer(5, { complete }));
    }
    const busyUntil = performance.now() + 15;
    while (performance.now() < busyUntil);
    await run((c) => void reactor.timer(20, c));
    expect(fired).toBe(1);
  });

  it('the clock goes on with the turns', async () => {
    const { reactor, run } = bench();
    const before = reactor.now();
    await run((c) => void reactor.timer(20, c));
    expect(reactor.now() - before).toBeGreaterThan(10);
  });

  it('hooks run at the end of a turn, after its completions', async () => {
    const { reactor, file, memory, run } = bench();
    const fd = file('a', new Uint8Array(4096));
    const at = memory(4096);
    const seen: string[] = [];
    reactor.onTurnEnd(() => seen.push('hook'));
    await run((done) => reactor.read(fd, at, 512, 0, { complete: (n) => (seen.push('read'), done.complete(n)) }));
    await run((c) => void reactor.timer(5, c));
    expect(seen[seen.indexOf('read') + 1]).toBe('hook');
  });

  it('messages of a worker arrive in turn', async () => {
    const { reactor, run } = bench();
    const { port1, port2 } = new MessageChannel();
    const received: unknown[] = [];
    const notifier = reactor.onMessages(port1, (message) => received.push(message));
    const worker = new Worker(
      `const { workerData, parentPort } = require('node:worker_threads');
       for (let i = 0; i < 3; i++) workerData.port.postMessage({ i });
       if (workerData.wakeFd !== -1) require('node:fs').writeSync(workerData.wakeFd, new Uint8Array([1, 0, 0, 0, 0, 0, 0, 0]));`,
      { eval: true, workerData: { port: port2, wakeFd: notifier.wakeFd }, transferList: [port2] },
    );
    await once(worker, 'exit');
    await expect.poll(() => received.length).toBe(3);
    expect(received).toEqual([{ i: 0 }, { i: 1 }, { i: 2 }]);
    notifier.close();
    port1.close();
    await run((c) => void reactor.timer(1, c));
  });

  it('closing twice is safe', async () => {
    const { reactor } = bench();
    await reactor.close();
    await reactor.close();
    expect(fs.existsSync('/proc/self')).toBe(true);
  });
}
