/** The regression guard: ratios of this run beside those of a report that was kept. Only what is ours counts, only
 *  where both runs measured it, and only beyond the noise of both. */

import type { Report } from './report.ts';
import type { Outcome } from './targets.ts';

/** Differences smaller than this are nobody's, however quiet both runs were. */
const TOLERANCE = 0.1;

const keyOf = ({ target, experiment }: Outcome): string => `${target} ${experiment}`;

/** One line for each target that became worse. A run of a single round knows no noise, so it is given twice the
 *  tolerance. */
export function regressions(kept: Report, now: readonly Outcome[]): string[] {
  const before = new Map(kept.experiments.flatMap(({ outcomes }) => outcomes).map((one) => [keyOf(one), one]));
  return now.flatMap((one) => {
    const old = before.get(keyOf(one));
    if (old === undefined) return [];
    const rounds = Math.min(old.reached.count, one.reached.count) < 2 ? 2 : 1;
    // Within its bound it is still what was promised, so it must have become clearly worse.
    const tolerance = TOLERANCE * rounds * (one.verdict === 'met' ? 2 : 1);
    const worse = one.bound.startsWith('≥')
      ? one.reached.max < old.reached.min * (1 - tolerance)
      : one.reached.min > old.reached.max * (1 + tolerance) + Number.EPSILON;
    if (!worse) return [];
    const was = `${old.reached.median.toFixed(2)} (${old.reached.min.toFixed(2)} – ${old.reached.max.toFixed(2)})`;
    const is = `${one.reached.median.toFixed(2)} (${one.reached.min.toFixed(2)} – ${one.reached.max.toFixed(2)})`;
    return [`${one.target}, ${one.experiment}: was ${was}, is ${is}, wanted ${one.bound}`];
  });
}
