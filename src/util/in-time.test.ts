import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { BlksnapError } from './errors.ts';
import { inTime } from './in-time.ts';

const late = (): BlksnapError => new BlksnapError('ETIMEDOUT', 'too late');

it('gives what comes in time, also a failure, and waits no longer for what does not', async () => {
  expect(await inTime(sleep(1, 'done'), 10_000, late)).toBe('done');
  await expect(inTime(Promise.reject(new Error('broken')), 10_000, late)).rejects.toThrow('broken');
  await expect(inTime(new Promise(() => {}), 5, late)).rejects.toMatchObject({ code: 'ETIMEDOUT' });
});
