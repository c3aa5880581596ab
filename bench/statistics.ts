/** Medians and spreads. */

import type { Series } from './measurement.ts';

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  if (sorted.length === 0) return Number.NaN;
  return sorted.length % 2 === 1 ? sorted[Math.floor(middle)]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Median with the smallest and the largest. */
export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly count: number;
}

export function spreadOf(values: readonly number[]): Spread {
  return { median: median(values), min: Math.min(...values), max: Math.max(...values), count: values.length };
}

/** As `median (smallest to largest)`. */
export function writtenSpread(values: readonly number[]): string {
  const { median: middle, min, max } = spreadOf(values);
  const digits = (value: number): number => Number(value.toPrecision(3));
  return `${digits(middle)} (${digits(min)} to ${digits(max)})`;
}

/** The rounds in which the metric was measured. */
export function valuesOf(series: Series, metric: string): number[] {
  return series.samples.flatMap((sample) => {
    const value = sample?.[metric];
    return value === undefined || Number.isNaN(value) ? [] : [value];
  });
}

/** One by the other, round by round: what disturbed a round disturbed both. */
export function pairedRatios(subject: Series, reference: Series, metric: string): number[] {
  return subject.samples.flatMap((sample, round) => {
    const [above, below] = [sample?.[metric], reference.samples[round]?.[metric]];
    const ratio = above === undefined || below === undefined || below === 0 ? Number.NaN : above / below;
    return Number.isFinite(ratio) ? [ratio] : [];
  });
}
