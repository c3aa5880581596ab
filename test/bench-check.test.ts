/** The benchmark's regression guard: what it calls worse. */

import { expect, test } from 'vitest';
import { regressions } from '../bench/check.ts';
import { judgeAgain } from '../bench/judge-again.ts';
import type { Experiment, Series } from '../bench/measurement.ts';
import type { ExperimentReport, Report } from '../bench/report.ts';
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
  const measured = { name: kept.experiment, title: '', group: 'plain', unit: '', date: '', commit: '', rows: [] };
  const report: Report = {
    machine: {},
    settings: {},
    experiments: [{ ...measured, outcomes: [kept] }],
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

/** As much of one as verdicts depend on. */
function experiment(name: string, better: Experiment['better'] = 'more'): Experiment {
  return { name, title: '', group: '', unit: '', better, place: 'memory', quick: false, entrants: [] };
}

test('what is missed is at its limit where who does less is hardly better: in rates, and in times', () => {
  const verdict = (name: string, metric: string, figures: Record<string, number>): string | undefined => {
    const series = Object.entries(figures).map(([entrant, figure]): Series => {
      return { experiment: name, entrant, samples: [{ value: figure, [metric]: figure }] };
    });
    return judge(experiment(name), series)[0]?.verdict;
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

test('an increment is held to the time of its whole command, and of its work, each by itself', () => {
  const samples = [{ value: 10, incrementSeconds: 1, incrementWorkShare: 0.02, incrementReadShare: 1 }];
  const outcomes = judge(experiment('copy', 'less'), [{ experiment: 'copy', entrant: 'blksnap', samples }]);
  expect(outcomes.map(({ target, reached, verdict }) => [target, reached.median, verdict])).toEqual([
    ['increment-command', 0.1, 'not met'],
    ['increment-work', 0.02, 'met'],
    ['increment-read', 1, 'met'],
  ]);
});

test('a target that is newer than the measurement is judged by the medians, and no other one again', () => {
  const spread = (median: number): Outcome['reached'] => ({ median, min: median - 1, max: median + 1, count: 3 });
  const row = (entrant: string, rate: number, p99: number): ExperimentReport['rows'][number] => {
    return { entrant, title: '', ratio: 1, metrics: { value: spread(rate), p99Us: spread(p99) } };
  };
  const rows = [row('blksnap-serve', 100, 50), row('blksnap-tracker', 90, 60)];
  const reached = { median: 0.96, min: 0.9, max: 0.98, count: 3 };
  const known = outcome(0, 0, { target: 'tracker', bound: '≥ 0.97', title: 'old', reached, verdict: 'noise' });
  const gone = outcome(0, 0, { target: 'no target any more' });
  const outcomes = judgeAgain(experiment('randread-4k-qd32'), { rows, outcomes: [known, gone] });
  expect(outcomes.map(({ target, title }) => [target, title])).toEqual([
    ['tracker', 'tracker attached, by without'],
    ['tracker-latency', 'tracker attached, p99 latency by without'],
  ]);
  expect(outcomes[0]).toMatchObject({ reached, verdict: 'noise' });
  expect(outcomes[1]).toMatchObject({ reached: { median: 1.2, count: 1 }, verdict: 'not met', ofMedians: true });
});
