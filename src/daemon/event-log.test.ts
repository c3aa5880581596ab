import { describe, expect, it } from 'vitest';
import { EventLog } from './event-log.ts';
import type { EventView } from './views.ts';

function event(snapshotId: string, usedBytes = 0): Omit<EventView, 'sequence'> {
  return {
    time: new Date(0).toISOString(),
    snapshotId,
    disk: null,
    code: 'lowSpace',
    error: null,
    requestedBytes: null,
    usedBytes,
    limitBytes: null,
  };
}

describe('EventLog', () => {
  it('gives each reader what came after the last it saw', async () => {
    const log = new EventLog();
    log.open('s');
    log.push(event('s', 1));
    log.push(event('s', 2));
    const all = await log.wait('s', { after: 0, timeoutMs: 0 });
    expect(all.map(({ sequence, usedBytes }) => [sequence, usedBytes])).toEqual([
      [1, 1],
      [2, 2],
    ]);
    expect((await log.wait('s', { after: 1, timeoutMs: 0 })).length).toBe(1);
    expect(await log.wait('s', { after: 2, timeoutMs: 0 })).toEqual([]);
  });

  it('wakes those who wait, all of them', async () => {
    const log = new EventLog();
    log.open('s');
    const waiting = [0, 0].map((after) => log.wait('s', { after, timeoutMs: 60_000 }));
    log.push(event('s'));
    expect((await Promise.all(waiting)).map((events) => events.length)).toEqual([1, 1]);
  });

  it('ends a wait when the time is over, or the reader is gone', async () => {
    const log = new EventLog();
    log.open('s');
    expect(await log.wait('s', { after: 0, timeoutMs: 5 })).toEqual([]);
    const reader = new AbortController();
    const waiting = log.wait('s', { after: 0, timeoutMs: 60_000, signal: reader.signal });
    reader.abort();
    expect(await waiting).toEqual([]);
  });

  it('says when the snapshot is gone, also to those who wait', async () => {
    const log = new EventLog();
    log.open('s');
    const waiting = log.wait('s', { after: 0, timeoutMs: 60_000 });
    log.close('s');
    await expect(waiting).rejects.toMatchObject({ code: 'ESRCH' });
    await expect(log.wait('s', { after: 0, timeoutMs: 0 })).rejects.toMatchObject({ code: 'ESRCH' });
    log.push(event('s'));
    expect(log.size).toBe(0);
  });

  it('keeps the newest thousand', async () => {
    const log = new EventLog();
    log.open('s');
    for (let i = 0; i < 1500; i++) log.push(event('s'));
    const kept = await log.wait('s', { after: 0, timeoutMs: 0 });
    expect([kept.length, kept[0]?.sequence, kept.at(-1)?.sequence]).toEqual([1000, 501, 1500]);
  });
});
