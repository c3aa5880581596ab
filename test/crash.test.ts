/** The daemon killed at random moments under fio with verify. Ten seconds here; `npm run crash -- --minutes N [--seed N]`
 *  has more, and power losses (test/power/power-loss.ts). */

import { expect, it } from 'vitest';
import { Prng } from '../src/util/prng.ts';
import { killDaemons } from './crash/kill-daemon.ts';
import { requirePrograms } from './requirements.ts';

const forMs = Number(process.env['BLKSNAP_CRASH_MINUTES'] ?? 1 / 6) * 60_000;
const seed = Number(process.env['BLKSNAP_SEED'] ?? Date.now() % 1_000_000);

it(
  'a killed daemon loses nothing, and its change history stays right',
  { timeout: forMs + 300_000 },
  async (context) => {
    requirePrograms(context, 'fio');
    // Also of a run that does not end. Half of the time is for power losses.
    context.onTestFailed(() => console.log(`repeat: npm run crash -- --minutes ${forMs / 30_000} --seed ${seed}`));
    const until = performance.now() + forMs;
    const report = await killDaemons(new Prng(seed), () => performance.now() < until);
    console.log(JSON.stringify(report));
    expect(report.kills).toBeGreaterThan(0);
    expect(report.incrementals).toBe(report.kills);
  },
);
