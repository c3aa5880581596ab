/** The benchmark's regression guard: what it calls worse. */

import { expect, test } from 'vitest';
import { regressions } from '../bench/check.ts';
import type { Experiment, Series } from '../bench/measurement.ts';
import type { Report } from '../bench/report.ts';
import { judge } from '../bench/targets.ts';
import type { Outcome } from '../bench/targets.ts';

function outcome(min: number, max: number, more: Partial<Outcome> = {}): Outcome {
  return {
    target: 'deep-queues',
    experiment: 'randread-4k-qd32',
    title: '',
    bound: '≥ 1.2',
    by: 'nbdkit-file',
    reached: { median: (min + max) / 2, min, max, count: 3 },
    verdict: (min + max) / 2 >= 1.2 ? 'met' : 'not met',
    ...more,
  };
}

function worse(kept: Outcome, now: Outcome): number {
  const experiment = { name: kept.experiment, title: '', group: 'plain', unit: '', date: '', commit: '', rows: [] };
  const report: Report = {
    machine: {},
    settings: {},
    experiments: [{ ...experiment, outcomes: [kept] }],
    failures: [],
  };
  return regressions(report, [now]).length;
}

test('what overlaps, or is as near as noise, is no regression', () => {
  expect(worse(outcome(1.2, 1.4), outcome(1.1, 1.3))).toBe(0);
  expect(worse(outcome(1.2, 1.4), outcome(1.0, 1.09))).toBe(0);
});

test('a target that was reached, and is missed beyond the noise, is one', () => {
  expect(worse(outcome(1.25, 1.4), outcome(0.9, 1.05))).toBe(1);
});

test('so is one that is reached still, but clearly less', () => {
  expect(worse(outcome(1.8, 2), outcome(1.5, 1.6))).toBe(0);
  expect(worse(outcome(1.8, 2), outcome(1.25, 1.4))).toBe(1);
});

test('where less is better, more is worse', () => {
  const share = { bound: '≤ 1', target: 'latency' };
  expect(worse(outcome(0.4, 0.5, share), outcome(1.1, 1.2, { ...share, verdict: 'not met' }))).toBe(1);
  expect(worse(outcome(0.4, 0.5, share), outcome(0.2, 0.3, { ...share, verdict: 'met' }))).toBe(0);
});

test('what is missed is at its limit where who does less is hardly better: in rates, and in times', () => {
  const verdict = (name: string, metric: string, figures: Record<string, number>): string | undefined => {
    const series = Object.entries(figures).map(([entrant, figure]): Series => {
      return { experiment: name, entrant, samples: [{ value: figure, [metric]: figure }] };
    });
    const experiment: Experiment = {
      name,
      title: '',
      group: '',
      unit: '',
      better: 'more',
      place: 'memory',
      quick: false,
      entrants: [],
    };
    return judge(experiment, series)[0]?.verdict;
  };
  const rates = (serve: number): Record<string, number> => ({
    'blksnap-serve': serve,
    'nbdkit-file': 100,
    'blksnap-nothing': 115,
  });
  expect([121, 114, 105].map((serve) => verdict('randread-4k-qd32', 'value', rates(serve)))).toEqual([
    'met',
    'limit',
    'not met',
  ]);
  // By itself a target has no limit.
  const times = (backup: number): Record<string, number> => ({ 'blksnap-backup': backup, 'blksnap-held': 100 });
  expect([140, 160].map((backup) => verdict('write-while-reading-qd1', 'p99Us', times(backup)))).toEqual([
    'met',
    'not met',
  ]);
});
