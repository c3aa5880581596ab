/** One experiment as a panel of the chart: a bar for each entrant, ours marked. */

import type { ExperimentReport, Row } from './report.ts';
import { escaped } from './svg.ts';
import type { Piece } from './svg.ts';
import { written } from './table.ts';

export const PANEL_WIDTH = 440;
const LABEL = 222;
const VALUE = 52;
const BAR = 14;
const HEAD = 20;
const GAP = 20;
const OURS = '#2f6f9f';
const THEIRS = '#b8bec6';

export function isOurs({ entrant }: Row): boolean {
  return /^(?:blksnap|origin|image-)/.test(entrant);
}

/** The client's limit, the machine's: far beyond, often. */
function isLimit({ entrant }: Row): boolean {
  return /^(?:file-|memory-|blksnap-nothing)/.test(entrant);
}

function bar({ row, value }: { row: Row; value: number }, y: number, longest: number): string {
  const width = Math.max(1, (value / longest) * (PANEL_WIDTH - LABEL - VALUE));
  const text = y + BAR - 4;
  return [
    `<text x="${LABEL - 6}" y="${text}" text-anchor="end">${escaped(row.title)}</text>`,
    `<rect x="${LABEL}" y="${y}" width="${width.toFixed(1)}" height="${BAR - 3}" fill="${isOurs(row) ? OURS : THEIRS}"/>`,
    `<text x="${(LABEL + width + 5).toFixed(1)}" y="${text}">${written(value)}</text>`,
  ].join('');
}

export function panelOf({ title, unit, rows }: ExperimentReport, metric = 'value'): Piece {
  const shown = rows
    .filter((row) => !isLimit(row) && row.metrics[metric] !== undefined)
    .map((row) => ({ row, value: row.metrics[metric]!.median }));
  const longest = Math.max(...shown.map(({ value }) => value)) || 1;
  const heading = `<text y="12" font-weight="bold">${escaped(title)}, ${escaped(unit)}</text>`;
  const bars = shown.map((row, index) => bar(row, HEAD + index * BAR, longest));
  return { svg: [heading, ...bars].join('\n'), height: HEAD + shown.length * BAR + GAP };
}
