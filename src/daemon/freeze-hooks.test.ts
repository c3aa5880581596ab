/** Freeze hooks: what runs in which order, and that the thaw runs whatever happens. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
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

/** Of all processes. */
function commandLines(): string[] {
  const pids = fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  return pids.map((pid) => {
    try {
      return fs.readFileSync(`/proc/${pid}/cmdline`, 'latin1');
    } catch {
      return ''; // Gone meanwhile.
    }
  });
}

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
  const hang = `sh -c 'sleep 600; echo late >> ${log}'; true`;
  await expect(take(hang, tell(), { timeoutMs: 1000 })).rejects.toMatchObject({ code: 'ETIMEDOUT' });
  await expect.poll(() => commandLines().filter((line) => line.includes(log))).toEqual([]);
  expect(said()).toEqual(['thaw of a b']);
});

test('a take that fails is thawed, and tells why', async () => {
  const task = async () => Promise.reject(new BlksnapError('ENOSPC', 'no room'));
  await expect(take(tell(), tell(), { task })).rejects.toMatchObject({ code: 'ENOSPC', message: 'no room' });
  expect(said()).toEqual(['freeze of a b', 'thaw of a b']);
});

test('a take that comes too late is thawed in time, and undone', async () => {
  let end: (taken: string) => void = () => {};
  const task = async () => await new Promise<string>((resolve) => (end = resolve));
  // Long enough for the freeze, however slow the machine is.
  await expect(take(tell(), tell(), { task, timeoutMs: 3000 })).rejects.toMatchObject({ code: 'ETIMEDOUT' });
  expect(said()).toEqual(['freeze of a b', 'thaw of a b']);
  end('late');
  await expect.poll(() => undone).toEqual(['late']);
});

test('a thaw that fails leaves the snapshot, and is told', async () => {
  const { taken, report } = await take(tell(), 'exit 5');
  expect(taken).toBe('snapshot');
  expect(report.thawError).toMatch(/Cannot thaw: "exit 5" ended with 5/);
});
