/** A share of the simulator's seeds, that a run can be repeated bit for bit, and that a sample of deliberate bugs is
 *  found. `npm run sim -- --minutes N` runs more seeds, `npm run mutations` all bugs. */

import { describe, expect, it } from 'vitest';
import { LONGEST_MS, hunt } from './mutate.ts';
import { MUTATIONS } from './mutations.ts';
import { runProgram } from './program.ts';
import { shorten } from './shorten.ts';

const SEEDS = process.env['BLKSNAP_SEED'] === undefined ? 16 : 1;
const FIRST = Number(process.env['BLKSNAP_SEED'] ?? 1);
const STEPS = Number(process.env['BLKSNAP_STEPS'] ?? 50);
/** Every how many-th bug the sample takes. */
const SAMPLE = 12;

describe('simulator', () => {
  it.each(Array.from({ length: SEEDS }, (_, i) => FIRST + i))('finds nothing with seed %i', async (seed) => {
    const { failure } = await runProgram({ seed, steps: STEPS });
    expect(failure, `npm run sim -- --seed ${seed} --steps ${STEPS}`).toBeNull();
  });

  it('does the same for the same seed, and something else for another', async () => {
    const first = await runProgram({ seed: 77, steps: 40 });
    const second = await runProgram({ seed: 77, steps: 40 });
    const other = await runProgram({ seed: 78, steps: 40 });
    expect(second.traceHash).toBe(first.traceHash);
    expect([...second.kinds]).toEqual([...first.kinds]);
    expect(other.traceHash).not.toBe(first.traceHash);
  });

  it('does of a program only the steps that are kept', async () => {
    const { kinds } = await runProgram({ seed: 77, steps: 40, keep: [3, 17] });
    expect([...kinds.keys()]).toEqual([3, 17]);
  });

  it('shortens a program no further than to what it was, when nothing fails', async () => {
    const { keep } = await shorten({ seed: 77, steps: 3 }, 'nothing of the kind');
    expect(keep).toEqual([0, 1, 2]);
  });
});

describe('deliberate bugs', () => {
  it.each(MUTATIONS.filter((_, i) => i % SAMPLE === 0))('are found: $why', { timeout: LONGEST_MS }, (mutation) => {
    expect(hunt(mutation).steps).not.toBeNull();
  });
});
