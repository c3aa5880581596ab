/** The report as a picture (SVG): all peers in every cell of plain I/O, by ours; below it the figures of chosen
 *  experiments, a bar for each entrant. */

import { isOurs, panelOf, PANEL_WIDTH } from './chart-bars.ts';
import { plotOf } from './chart-peers.ts';
import { roundsIn } from './report.ts';
import type { Report } from './report.ts';
import { escaped } from './svg.ts';
import type { Piece } from './svg.ts';

const CHARTED = [
  'randread-4k-qd1',
  'randwrite-4k-qd1',
  'randread-4k-qd32',
  'randwrite-4k-qd32',
  'read-1m-qd4',
  'write-1m-qd4',
  'first-touch-4k-qd32',
  'first-touch-4k-apart-qd32',
  'first-touch-1m-qd4',
  'image-4k-qd32',
  'image-1m-qd4',
  'write-while-reading-qd32',
  'copy',
  'copy-disk',
  'daemon',
  'cbt-map',
  'take',
];
/** What was measured beside the figure of the experiment `daemon`. */
const DAEMON_FIGURES = [
  ['idleCpuMs', 'CPU time of the daemon in 3 s without a request', 'ms'],
  ['idleMiB', 'resident memory of the daemon while idle', 'MiB'],
  ['loadMiB', 'resident memory of the daemon under load', 'MiB'],
] as const;
const COLUMNS = 2;
const MARGIN = 20;
const WIDTH = COLUMNS * PANEL_WIDTH + MARGIN;

export function chartOf(report: Report): string {
  const { cpu, cpus } = report.machine;
  const caption = `${cpus} × ${cpu}, medians of ${roundsIn(report)}; of times and memory, less is better`;
  const body = [`<text y="12" fill="#555555">${escaped(caption)}</text>`];
  let top = 30;
  const place = ({ svg, height }: Piece, left: number): number => {
    body.push(`<g transform="translate(${left} ${top})">`, svg, '</g>');
    return height;
  };
  const plot = plotOf(report.experiments, WIDTH);
  if (plot !== null) top += place(plot, 0);
  const panels = CHARTED.flatMap((name) => {
    const experiment = report.experiments.find((one) => one.name === name);
    if (!experiment?.rows.some(isOurs)) return [];
    const others = name === 'daemon' ? DAEMON_FIGURES : [];
    const more = others.map(([metric, title, unit]) => panelOf({ ...experiment, title, unit }, metric));
    return [panelOf(experiment)].concat(more);
  });
  for (let index = 0; index < panels.length; index += COLUMNS) {
    const line = panels.slice(index, index + COLUMNS);
    top += Math.max(...line.map((panel, column) => place(panel, column * (PANEL_WIDTH + MARGIN))));
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -6 ${WIDTH + 20} ${top}" font-family="sans-serif" font-size="10">`,
    `<rect x="-10" y="-6" width="${WIDTH + 20}" height="${top}" fill="#ffffff"/>`,
    ...body,
    '</svg>',
    '',
  ].join('\n');
}
