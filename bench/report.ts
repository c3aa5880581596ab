/** What is made of the samples: medians, spreads, ratios, a table, a JSON file. */

import type { Sample } from './fio.ts';
import type { Workload } from './workloads.ts';

export interface Summary {
  readonly contender: string;
  readonly workload: string;
  readonly unit: Workload['unit'];
  readonly rounds: number;
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly p50Us: number;
  readonly p99Us: number;
  /** Median of this contender by the median of the first one measured. */
  readonly ratio: number;
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  return sorted.length % 2 === 1 ? sorted[Math.floor(middle)]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** One summary per contender, in the given order; a contender without samples is left out. */
export function summarize(workload: Workload, samples: ReadonlyMap<string, readonly Sample[]>): Summary[] {
  const measured = [...samples].filter(([, list]) => list.length > 0);
  const base = measured[0] === undefined ? Number.NaN : median(measured[0][1].map(({ rate }) => rate));
  return measured.map(([contender, list]) => {
    const rates = list.map(({ rate }) => rate);
    return {
      contender,
      workload: workload.name,
      unit: workload.unit,
      rounds: rates.length,
      median: median(rates),
      min: Math.min(...rates),
      max: Math.max(...rates),
      p50Us: median(list.map(({ p50Us }) => p50Us)),
      p99Us: median(list.map(({ p99Us }) => p99Us)),
      ratio: median(rates) / base,
    };
  });
}

const whole = (value: number): string => Math.round(value).toLocaleString('en-US');
const micros = (value: number): string => (value >= 100 ? whole(value) : value.toFixed(1));

/** Lines of a table of one workload. `titles` names the contenders. */
export function tableOf(
  workload: Workload,
  summaries: readonly Summary[],
  titles: ReadonlyMap<string, string>,
): string[] {
  const head = ['', workload.unit, 'min – max', 'p50 µs', 'p99 µs', 'ratio'];
  const rows = summaries.map((one) => [
    titles.get(one.contender) ?? one.contender,
    whole(one.median),
    `${whole(one.min)} – ${whole(one.max)}`,
    micros(one.p50Us),
    micros(one.p99Us),
    one.ratio.toFixed(2),
  ]);
  const widths = head.map((cell, column) => Math.max(cell.length, ...rows.map((row) => row[column]!.length)));
  const line = (row: readonly string[]): string =>
    row.map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!))).join('  ');
  return [line(head), ...rows.map(line)].map((text) => text.trimEnd());
}
