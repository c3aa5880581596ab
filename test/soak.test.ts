/** The long tests over NBD, on both drivers. Two seconds each here; `npm run soak -- --minutes N [--seed N]` gives
 *  each of them its part of N minutes. */

import { describe, expect, it } from 'vitest';
import { chooseDriver } from '../src/io/open.ts';
import { ALGORITHMS } from './soak/algorithms.ts';
import { SoakDisk } from './soak/disk.ts';

const DRIVERS = ['uring', 'portable'] as const;
const given = Number(process.env['BLKSNAP_SOAK_MINUTES'] ?? 0);
const runs = DRIVERS.length * Object.keys(ALGORITHMS).length;
const eachMs = given > 0 ? (given * 60_000) / runs : 2000;
const minutes = (eachMs * runs) / 60_000;
const seed = Number(process.env['BLKSNAP_SEED'] ?? Date.now() % 1_000_000);

describe.each(DRIVERS)('on the %s driver', (driver) => {
  for (const [name, algorithm] of Object.entries(ALGORITHMS)) {
    it(name, { timeout: eachMs + 300_000 }, async (context) => {
      // Also of a run that does not end.
      context.onTestFailed(() => console.log(`repeat: npm run soak -- --minutes ${minutes} --seed ${seed}`));
      const choice = await chooseDriver();
      context.skip(driver === 'uring' && choice.driver !== 'uring', choice.reason);
      const disk = new SoakDisk(seed);
      try {
        await disk.start(driver);
        const until = performance.now() + eachMs;
        const rounds = await algorithm(disk, () => performance.now() < until);
        expect(rounds).toBeGreaterThan(0);
        expect(await disk.client.snapshots()).toEqual([]);
      } catch (cause) {
        throw new Error(`${name} with seed ${seed}, after ${disk.sequence} writes: ${String(cause)}`, { cause });
      } finally {
        await disk.stop();
      }
    });
  }
});
