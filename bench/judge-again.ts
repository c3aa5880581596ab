/** Verdicts on what was measured before there was the target. A report keeps no rounds, so these are of the medians:
 *  such a cell reaches its bound or does not, and none is called noise. */

import type { Experiment } from './measurement.ts';
import type { ExperimentReport } from './report.ts';
import { judge } from './targets.ts';
import type { Outcome } from './targets.ts';

/** The outcomes that the targets of today ask for; those that were judged by rounds stay. */
export function judgeAgain(
  experiment: Experiment,
  { rows, outcomes }: Pick<ExperimentReport, 'rows' | 'outcomes'>,
): Outcome[] {
  const series = rows.map(({ entrant, metrics }) => {
    const { value, ...others } = metrics;
    const medians = Object.entries(others).map(([metric, spread]) => [metric, spread.median] as const);
    const sample = { value: value!.median, ...Object.fromEntries(medians) };
    return { experiment: experiment.name, entrant, samples: [sample] };
  });
  const latest: Outcome[] = [];
  for (const now of judge(experiment, series)) {
    const before = outcomes.find(({ target, bound }) => target === now.target && bound === now.bound);
    latest.push(before === undefined ? { ...now, ofMedians: true } : { ...before, title: now.title });
  }
  return latest;
}
