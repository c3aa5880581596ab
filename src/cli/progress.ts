/** Progress on standard error: a line that redraws itself on a terminal, a line every few seconds
 *  elsewhere, nothing with --json. */

import { formatSeconds, formatSize } from '../util/units.ts';

export interface Advance {
  readonly bytesDone: number;
  readonly bytesTotal: number;
  readonly seconds: number;
}

const BAR_CELLS = 24;
const PLAIN_INTERVAL_SECONDS = 5;
const REDRAW_INTERVAL_SECONDS = 0.1;

export class Progress {
  readonly #mode: 'bar' | 'plain' | 'none';
  #label = '';
  #nextSeconds = 0;
  #drawn = false;

  constructor(json: boolean) {
    this.#mode = json ? 'none' : process.stderr.isTTY ? 'bar' : 'plain';
  }

  /** Begins a new piece of work. */
  start(label: string): void {
    this.end();
    this.#label = label;
    this.#nextSeconds = this.#mode === 'plain' ? PLAIN_INTERVAL_SECONDS : 0;
  }

  readonly update = (advance: Advance): void => {
    if (this.#mode === 'none' || advance.seconds < this.#nextSeconds) return;
    this.#nextSeconds = advance.seconds + (this.#mode === 'bar' ? REDRAW_INTERVAL_SECONDS : PLAIN_INTERVAL_SECONDS);
    const line = `${this.#label}  ${formatAdvance(advance, this.#mode === 'bar')}`;
    if (this.#mode === 'plain') process.stderr.write(`${line}\n`);
    else process.stderr.write(`\r\x1b[K${line.slice(0, (process.stderr.columns ?? 80) - 1)}`);
    this.#drawn = true;
  };

  /** Takes the bar away. */
  end(): void {
    if (this.#drawn && this.#mode === 'bar') process.stderr.write('\r\x1b[K');
    this.#drawn = false;
  }
}

/** `[#####-----]  42%  1.2 GiB of 2.9 GiB  310 MiB/s  5.5 s left` */
export function formatAdvance({ bytesDone, bytesTotal, seconds }: Advance, withBar: boolean): string {
  const share = bytesTotal === 0 ? 1 : Math.min(1, bytesDone / bytesTotal);
  const filled = Math.round(share * BAR_CELLS);
  const bar = withBar ? `[${'#'.repeat(filled)}${'-'.repeat(BAR_CELLS - filled)}]  ` : '';
  const rate = seconds > 0 ? bytesDone / seconds : 0;
  const left = rate > 0 ? `  ${formatSeconds((bytesTotal - bytesDone) / rate)} left` : '';
  const percent = `${Math.floor(share * 100)}%`.padStart(4);
  return `${bar}${percent}  ${formatSize(bytesDone)} of ${formatSize(bytesTotal)}  ${formatSize(Math.round(rate))}/s${left}`;
}
