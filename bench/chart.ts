/** The report as a picture (SVG): for each chosen experiment a bar per entrant, ours and the best peer's marked. */

import type { ExperimentReport, Report, Row } from './report.ts';
import { written } from './report.ts';

const CHARTED = [
  'randread-4k-qd1',
  'randread-4k-qd32',
  'randwrite-4k-qd1',
  'randwrite-4k-qd32',
  'read-1m-qd4',
  'write-1m-qd4',
  'first-touch-4k-qd32',
  'first-touch-4k-apart-qd32',
  'first-touch-1m-qd4',
  'image-4k-qd32',
  'copy',
];

const WIDTH = 860;
const LABEL = 260;
const VALUE = 90;
const BAR = 16;
const GAP = 30;
const OURS = '#2f6f9f';
const THEIRS = '#b8bec6';
const LIMIT = '#e4dfc8';

function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

function isOurs({ entrant }: Row): boolean {
  return /^(?:blksnap|origin|image-)/.test(entrant);
}

function isLimit({ entrant }: Row): boolean {
  return /^(?:file-|memory-)/.test(entrant);
}

function bar(row: Row, y: number, longest: number): string {
  const value = row.metrics['value']!.median;
  const width = Math.max(1, (value / longest) * (WIDTH - LABEL - VALUE));
  const color = isOurs(row) ? OURS : isLimit(row) ? LIMIT : THEIRS;
  const text = y + BAR - 5;
  return [
    `<text x="${LABEL - 8}" y="${text}" text-anchor="end">${escaped(row.title)}</text>`,
    `<rect x="${LABEL}" y="${y}" width="${width.toFixed(1)}" height="${BAR - 3}" fill="${color}"/>`,
    `<text x="${(LABEL + width + 6).toFixed(1)}" y="${text}">${written(value)}</text>`,
  ].join('');
}

/** Bars end at the best server: the machine's limit may lie far beyond. */
function panel(
  { title, unit, rows }: ExperimentReport,
  top: number,
): { readonly svg: string; readonly height: number } {
  const shown = rows.filter((row) => !isLimit(row));
  const longest = Math.max(...shown.map(({ metrics }) => metrics['value']!.median));
  const heading = `<text x="0" y="${top + 13}" font-weight="bold">${escaped(title)}, ${escaped(unit)}</text>`;
  const bars = shown.map((row, index) => bar(row, top + 22 + index * BAR, longest));
  return { svg: [heading, ...bars].join('\n'), height: 22 + shown.length * BAR + GAP };
}

export function chartOf(report: Report): string {
  const panels: string[] = [];
  let height = 34;
  for (const name of CHARTED) {
    const experiment = report.experiments.find((one) => one.name === name);
    if (experiment === undefined || experiment.rows.length === 0) continue;
    const { svg, height: more } = panel(experiment, height);
    panels.push(svg);
    height += more;
  }
  const { cpu, cpus } = report.machine;
  const { rounds } = report.settings;
  const caption = `${cpus} × ${cpu}, medians of ${rounds} rounds; of seconds, fewer are better`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -4 ${WIDTH + 20} ${height}" font-family="sans-serif" font-size="11">`,
    `<rect x="-10" y="-4" width="${WIDTH + 20}" height="${height}" fill="#ffffff"/>`,
    `<text x="0" y="14" fill="#555555">${escaped(caption)}</text>`,
    ...panels,
    '</svg>',
    '',
  ].join('\n');
}
