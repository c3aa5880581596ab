/** The benchmark's summary: no cell that misses its target is left out, and none that reaches it is called missed. */

import { expect, test } from 'vitest';
import type { Outcome, Verdict } from '../bench/targets.ts';
import { summaryOf, targetsDocument } from '../bench/verdicts.ts';

function outcome(experiment: string, verdict: Verdict, median: number): Outcome {
  const reached = { median, min: median - 0.1, max: median + 0.1, count: 3 };
  return { target: 'deep-queues', experiment, title: '', bound: '≥ 1.2', by: 'nbd-server', reached, verdict };
}

const OUTCOMES = [
  outcome('randread-4k-qd32', 'met', 1.31),
  outcome('randread-4k-qd32-4c', 'limit', 1.12),
  outcome('randread-4k-qd32-disk', 'met', 1.33),
  outcome('randread-4k-qd32-disk-4c', 'not met', 0.94),
];

test('counts the cells of each target and shows those that miss it, the worst first', () => {
  const lines = summaryOf(OUTCOMES);
  expect(lines[1]).toMatch(/^deep-queues +≥ 1\.2 +1 +1 +2$/);
  const missed = lines.slice(lines.indexOf('') + 2);
  expect(missed.map((line) => line.split(/ {2,}/)[1])).toEqual(['randread-4k-qd32-disk-4c', 'randread-4k-qd32-4c']);
});

test('says so where nothing was missed, or measured', () => {
  expect(summaryOf(OUTCOMES.slice(0, 1)).join('\n')).not.toContain('randread');
  expect(summaryOf([])).toEqual(['No target was measured.']);
});

test('puts the places of a workload beside each other', () => {
  const experiment = { name: '', title: '', group: '', unit: '', date: '2026-01-01T00:00:00Z', commit: 'c', rows: [] };
  const report = { machine: {}, settings: {}, failures: [], experiments: [{ ...experiment, outcomes: OUTCOMES }] };
  const row = '| deep-queues | randread-4k-qd32 | ≥ 1.2 | 1.31 | **1.12 limit** | 1.33 | **0.94 not met** |';
  expect(targetsDocument(report).split('\n')).toContain(row);
});

test('marks what was judged by medians', () => {
  const [line] = summaryOf([{ ...outcome('randread-4k-qd32', 'not met', 0.9), ofMedians: true }]).slice(-1);
  expect(line).toMatch(/0\.90\*  nbd-server$/);
});
