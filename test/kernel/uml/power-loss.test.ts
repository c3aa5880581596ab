/** Power loss on a real file system (test/power/power-loss.ts). A share, on ext4; `npm run crash -- --minutes N` has more, and xfs. */

import { describe, expect, it } from 'vitest';
import { Prng } from '../../../src/util/prng.ts';
import { FILE_SYSTEMS } from '../../power/machine.ts';
import { losePower } from '../../power/power-loss.ts';

const losses = Number(process.env['BLKSNAP_POWER_LOSSES'] ?? 2);
const chosen = (process.env['BLKSNAP_POWER_SYSTEMS'] ?? 'ext4').split(',');
const seed = Number(process.env['BLKSNAP_SEED'] ?? Date.now() % 1_000_000);

describe('after a power loss', () => {
  for (const fileSystem of FILE_SYSTEMS.filter((name) => chosen.includes(name))) {
    it(
      `restore points are whole and the change history is right on ${fileSystem}`,
      { timeout: 3_600_000 },
      async () => {
        console.log(`seed ${seed}`);
        const report = await losePower({ fileSystem, random: new Prng(seed), recordMs: 3000 + losses * 1000, losses });
        console.log(JSON.stringify(report));
        // The last loss is at the end of the log, with all that was finished.
        expect(report.points).toBeGreaterThan(0);
        expect(report.histories).toBeGreaterThan(0);
        expect(report.refused).toBeGreaterThan(0);
      },
    );
  }
});
