/** Freeze hooks: what runs in which order, and that the thaw runs whatever happens. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { BlksnapError } from '../util/errors.ts';
import { takeFrozen } from './freeze-hooks.ts';

let directory = '';
let log = '';
beforeEach(() => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-hooks-'));
  log = path.join(directory, 'log');
});
afterEach(() => fs.rmSync(directory, { recursive: true }));

const said = (): string[] => fs.readFileSync(log, 'utf8').trim().split('\n');
const undone: string[] = [];

async function take(freeze: string, thaw: string, options: { timeoutMs?: number; task?: () => Promise<string> } = {}) {
  const task =
    options.task ??
    (async () => {
      fs.appendFileSync(log, 'take\n');
      return 'snapshot';
    });
  return await takeFrozen({ freeze, thaw, timeoutMs: options.timeoutMs ?? 10_000 }, ['a', 'b'], {
    take: task,
    undo: async (taken) => void undone.push(taken),
  });
}

const tell = (): string => `echo "$BLKSNAP_HOOK of $BLKSNAP_DISKS" >> ${log}`;

test('they run before and after, and know the disks', async () => {
  const { taken, report } = await take(tell(), tell());
  expect(taken).toBe('snapshot');
  expect(said()).toEqual(['freeze of a b', 'take', 'thaw of a b']);
  expect(report.thawError).toBe(null);
  expect(report.frozenMs).toBeGreaterThan(0);
});

test('a freeze that fails means no take, and a thaw', async () => {
  await expect(take(`${tell()}; echo no such mount >&2; exit 3`, tell())).rejects.toMatchObject({
    code: 'ECANCELED',
    message: expect.stringMatching(/ended with 3: no such mount$/),
  });
  expect(said()).toEqual(['freeze of a b', 'thaw of a b']);
});

test('a freeze that hangs is ended with all it started, and thawed', async () => {
  const began = performance.now();
  const hang = `sh -c 'sleep 2; echo late >> ${log}'; true`;
  await expect(take(hang, tell(), { timeoutMs: 200 })).rejects.toMatchObject({ code: 'ETIMEDOUT' });
  expect(performance.now() - began).toBeLessThan(1500);
  await sleep(2200);
  expect(said()).toEqual(['thaw of a b']);
});

test('a take that fails is thawed, and tells why', async () => {
  const task = async () => Promise.reject(new BlksnapError('ENOSPC', 'no room'));
  await expect(take(tell(), tell(), { task })).rejects.toMatchObject({ code: 'ENOSPC', message: 'no room' });
  expect(said()).toEqual(['freeze of a b', 'thaw of a b']);
});

test('a take that comes too late is thawed in time, and undone', async () => {
  const task = async () => {
    await sleep(300);
    return 'late';
  };
  await expect(take(tell(), tell(), { task, timeoutMs: 150 })).rejects.toMatchObject({ code: 'ETIMEDOUT' });
  expect(said()).toEqual(['freeze of a b', 'thaw of a b']);
  await expect.poll(() => undone).toEqual(['late']);
});

test('a thaw that fails leaves the snapshot, and is told', async () => {
  const { taken, report } = await take(tell(), 'exit 5');
  expect(taken).toBe('snapshot');
  expect(report.thawError).toMatch(/Cannot thaw: "exit 5" ended with 5/);
});
