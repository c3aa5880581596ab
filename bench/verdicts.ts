/** The targets' verdicts for people: a line for each target, the cells that miss it, and every cell beside the same
 *  workload's in other places. */

import { roundsIn } from './report.ts';
import type { Report } from './report.ts';
import { aligned, markdown, written } from './table.ts';
import type { Outcome, Verdict } from './targets.ts';

/** The worst first. */
const VERDICTS: readonly Verdict[] = ['not met', 'noise', 'limit', 'met'];
/** Ends of experiments' names, and where they say that it was. */
const PLACES = [
  ['', 'memory'],
  ['-4c', 'memory, 4 connections'],
  ['-disk', 'disk'],
  ['-disk-4c', 'disk, 4 connections'],
] as const;

const byTarget = (outcomes: readonly Outcome[]): Map<string, Outcome[]> => {
  const all = new Map<string, Outcome[]>();
  for (const one of outcomes) all.set(one.target, [...(all.get(one.target) ?? []), one]);
  return all;
};

const medianOf = ({ reached, ofMedians }: Outcome): string => `${written(reached.median)}${ofMedians ? '*' : ''}`;

const reachedBy = (one: Outcome): string =>
  one.ofMedians ? medianOf(one) : `${medianOf(one)} (${written(one.reached.min)} – ${written(one.reached.max)})`;

const counts = (cells: readonly Outcome[]): string[] =>
  VERDICTS.map((verdict) => String(cells.filter((one) => one.verdict === verdict).length || ''));

/** For each target how many cells have which verdict. */
function countRows(outcomes: readonly Outcome[]): string[][] {
  const rows = [...byTarget(outcomes)].map(([target, cells]) => {
    return [target, cells[0]!.title, cells[0]!.bound].concat(counts(cells));
  });
  const totals = counts(outcomes);
  return [['target', '', 'wanted', ...VERDICTS], ...rows, ['', 'all cells', '', ...totals]];
}

/** The cells that were not reached, in the targets' order. */
function missedRows(outcomes: readonly Outcome[]): string[][] {
  const missed = [...byTarget(outcomes.filter(({ verdict }) => verdict !== 'met')).values()].flatMap((cells) =>
    cells.toSorted((a, b) => VERDICTS.indexOf(a.verdict) - VERDICTS.indexOf(b.verdict)),
  );
  const rows = missed.map((one) => [one.target, one.experiment, one.verdict, one.bound, reachedBy(one), one.by ?? '']);
  return rows.length === 0 ? [] : [['target', 'experiment', 'verdict', 'wanted', 'reached', 'by'], ...rows];
}

/** Lines for a terminal. */
export function summaryOf(outcomes: readonly Outcome[]): string[] {
  if (outcomes.length === 0) return ['No target was measured.'];
  const missed = missedRows(outcomes);
  return [...aligned(countRows(outcomes), 2), ...(missed.length === 0 ? [] : ['', ...aligned(missed, 3)])];
}

/** A row for each workload of each target, a column for each place where it was measured. */
function cellRows(outcomes: readonly Outcome[]): string[][] {
  const rows = new Map<string, string[]>();
  for (const one of outcomes) {
    const { target, experiment, bound, verdict } = one;
    const ending = /(?:-disk)?(?:-4c)?$/.exec(experiment)![0];
    const workload = experiment.slice(0, experiment.length - ending.length);
    const key = `${target} ${workload}`;
    const row = rows.get(key) ?? [target, workload, bound, ...PLACES.map(() => '')];
    const place = PLACES.findIndex(([end]) => end === ending);
    row[3 + place] = verdict === 'met' ? medianOf(one) : `**${medianOf(one)} ${verdict}**`;
    rows.set(key, row);
  }
  return [['target', 'workload', 'wanted', ...PLACES.map(([, words]) => words)], ...rows.values()];
}

/** Of a whole report, as a document. */
export function targetsDocument(report: Report): string {
  const { machine, experiments } = report;
  const outcomes = experiments.flatMap((one) => one.outcomes).toSorted((a, b) => a.target.localeCompare(b.target));
  const commits = [...new Set(experiments.map(({ commit }) => commit))].join(', ');
  const dates = experiments.map(({ date }) => date.slice(0, 16)).toSorted();
  const [from, to] = [dates[0], dates.at(-1)];
  const { cpu, cpus, memoryGiB, kernel, node } = machine;
  return [
    '# The targets, cell by cell',
    '',
    `Made by \`npm run bench\` of ${commits}: ${roundsIn(report)}, ${from} to ${to} UTC,`,
    `on ${cpus} × ${cpu}, ${memoryGiB} GiB, Linux ${kernel}, Node ${node}. docs/benchmarks.md says what the words mean.`,
    '',
    ...markdown(countRows(outcomes)),
    '',
    '## What was missed',
    '',
    ...(missedRows(outcomes).length === 0 ? ['Nothing.'] : markdown(missedRows(outcomes))),
    '',
    '## All cells',
    '',
    'Medians, of the rounds, of the ratio (or the figure) that the target asks for. With * it is the ratio of the',
    'medians: the target is newer than the measurement.',
    '',
    ...markdown(cellRows(outcomes)),
    '',
  ].join('\n');
}
