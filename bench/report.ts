/** What is made of the samples: tables for people, and the JSON report. */

import type { Experiment, Series } from './measurement.ts';
import { spreadOf, valuesOf } from './statistics.ts';
import type { Spread } from './statistics.ts';
import { aligned, written } from './table.ts';
import type { Outcome } from './targets.ts';

export interface Row {
  readonly entrant: string;
  readonly title: string;
  readonly metrics: Readonly<Record<string, Spread>>;
  /** Median by the median of the first entrant. */
  readonly ratio: number;
}

export interface ExperimentReport {
  readonly name: string;
  readonly title: string;
  readonly group: string;
  readonly unit: string;
  /** When and of what: parts of a report may be of different runs. */
  readonly date: string;
  readonly commit: string;
  readonly rows: readonly Row[];
  readonly outcomes: readonly Outcome[];
}

export interface Report {
  readonly machine: Readonly<Record<string, string | number>>;
  readonly settings: Readonly<Record<string, number | boolean>>;
  readonly experiments: readonly ExperimentReport[];
  /** What could not be measured, and why. */
  readonly failures: readonly string[];
}

/** In how many rounds it was measured, in words: experiments of one report may come from different runs. */
export function roundsIn({ experiments }: Report): string {
  const counts = experiments.flatMap(({ rows }) => rows.map(({ metrics }) => metrics['value']!.count));
  const [least, most] = [Math.min(...counts), Math.max(...counts)];
  return least === most ? `${most} rounds` : `${least} to ${most} rounds`;
}

/** One row per entrant that was measured at all. */
export function rowsOf(experiment: Experiment, measured: readonly Series[]): Row[] {
  const present = measured.filter((series) => valuesOf(series, 'value').length > 0);
  const base = present[0] === undefined ? Number.NaN : spreadOf(valuesOf(present[0], 'value')).median;
  return present.map((series) => {
    const names = new Set(series.samples.flatMap((sample) => Object.keys(sample ?? {})));
    const spreads = [...names].map((name) => [name, valuesOf(series, name)] as const);
    const metrics = Object.fromEntries(
      spreads.filter(([, values]) => values.length > 0).map(([name, values]) => [name, spreadOf(values)]),
    );
    const title = experiment.entrants.find(({ name }) => name === series.entrant)!.title;
    return { entrant: series.entrant, title, metrics, ratio: metrics['value']!.median / base };
  });
}

const STANDARD = new Set(['value', 'p50Us', 'p99Us', 'cpuUs']);

/** Lines of a table of one experiment, and below it what else was measured. */
export function tableOf({ unit, rows }: Pick<ExperimentReport, 'unit' | 'rows'>): string[] {
  const latencies = rows.some(({ metrics }) => metrics['p99Us'] !== undefined);
  const head = ['', unit, 'min – max', ...(latencies ? ['p50 µs', 'p99 µs', 'CPU µs'] : []), 'ratio'];
  const cell = (spread: Spread | undefined): string => (spread === undefined ? '' : written(spread.median));
  const body = rows.map(({ title, metrics, ratio }) => [
    title,
    cell(metrics['value']),
    `${written(metrics['value']!.min)} – ${written(metrics['value']!.max)}`,
    ...(latencies ? ['p50Us', 'p99Us', 'cpuUs'].map((name) => cell(metrics[name])) : []),
    ratio.toFixed(2),
  ]);
  const others = rows.flatMap(({ title, metrics }) =>
    Object.entries(metrics)
      .filter(([name]) => !STANDARD.has(name))
      .map(([name, spread]) => `  ${title}: ${name} ${written(spread.median)}`),
  );
  return [...aligned([head, ...body]), ...others];
}
