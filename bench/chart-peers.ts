/** Every cell of plain I/O in one plot: a row for each workload and place, a dot for each peer where its figure lies by
 *  ours. Who is left of the line is slower. */

import type { ExperimentReport } from './report.ts';
import { escaped } from './svg.ts';
import type { Piece } from './svg.ts';

const SUBJECT = 'blksnap-serve';
const PEERS = [
  ['nbdkit-file', '#c8453b'],
  ['nbd-server', '#e09f3e'],
  ['qemu-nbd-threads', '#6a994e'],
  ['qemu-nbd-io_uring', '#7b5ea7'],
  ['qemu-storage-daemon', '#4a4e57'],
] as const;
const OURS = '#2f6f9f';
const LABEL = 190;
const ROW = 14;
const HEAD = 44;
/** Of the scale, which is logarithmic. Who lies beyond is drawn at its end. */
const [LEAST, MOST] = [1 / 8, 2];
const TICKS = [1 / 8, 1 / 4, 1 / 2, 1, 2];

/** Null where there is nothing to show. */
export function plotOf(experiments: readonly ExperimentReport[], width: number): Piece | null {
  const rows = experiments.flatMap((one) => {
    const valueOf = (name: string): number | undefined =>
      one.rows.find(({ entrant }) => entrant === name)?.metrics['value']!.median;
    const ours = valueOf(SUBJECT);
    const dots = PEERS.map(([name, color]) => ({ value: valueOf(name), color }));
    return ours !== undefined && dots.some(({ value }) => value !== undefined) ? [{ name: one.name, ours, dots }] : [];
  });
  if (rows.length === 0) return null;
  const bottom = HEAD + rows.length * ROW;
  const xOf = (ratio: number): string => {
    const share = Math.log(Math.min(MOST, Math.max(LEAST, ratio)) / LEAST) / Math.log(MOST / LEAST);
    return (LABEL + share * (width - LABEL - 10)).toFixed(1);
  };
  const lines = TICKS.map((tick) => {
    const [x, color] = [xOf(tick), tick === 1 ? OURS : '#dddddd'];
    const line = `<line x1="${x}" x2="${x}" y1="${HEAD - 2}" y2="${bottom}" stroke="${color}" stroke-width="1.5"/>`;
    const text = tick === 1 ? 'blksnap' : `× ${tick}`;
    return `${line}<text x="${x}" y="${HEAD - 6}" text-anchor="middle">${text}</text>`;
  });
  const legend = PEERS.map(([name, color], index) => {
    const x = LABEL + index * 140;
    return `<circle cx="${x}" cy="18" r="4" fill="${color}"/><text x="${x + 8}" y="22">${escaped(name)}</text>`;
  });
  const cells = rows.flatMap(({ name, ours, dots }, index) => {
    const y = HEAD + index * ROW;
    const stripe = `<rect y="${y}" width="${width}" height="${ROW}" fill="${index % 2 === 0 ? '#f4f6f8' : '#ffffff'}"/>`;
    const label = `<text x="${LABEL - 12}" y="${y + 10}" text-anchor="end">${escaped(name)}</text>`;
    return { stripe, rest: [label, ...dots.flatMap((dot) => circle(dot, { ours, y }))].join('') };
  });
  function circle(
    dot: { readonly value: number | undefined; readonly color: string },
    at: { ours: number; y: number },
  ): string[] {
    if (dot.value === undefined) return [];
    return [
      `<circle cx="${xOf(dot.value / at.ours)}" cy="${at.y + ROW / 2}" r="4" fill="${dot.color}" fill-opacity="0.85"/>`,
    ];
  }
  const svg = [
    '<text y="4" font-weight="bold">Plain I/O: rates of the peers, by ours (left of the line is slower)</text>',
    ...legend,
    ...cells.map(({ stripe }) => stripe),
    ...lines,
    ...cells.map(({ rest }) => rest),
  ].join('\n');
  return { svg, height: bottom + 24 };
}
