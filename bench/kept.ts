/** The results on disk. Written after each experiment, so that a run that dies keeps what it had: the report as JSON;
 *  of a full run also the targets' verdicts (Markdown) and the chart (SVG). */

import fs from 'node:fs';
import path from 'node:path';
import { chartOf } from './chart.ts';
import { judgeAgain } from './judge-again.ts';
import type { Experiment } from './measurement.ts';
import { EXPERIMENTS } from './plan.ts';
import type { ExperimentReport, Report } from './report.ts';
import { targetsDocument } from './verdicts.ts';

const RESULTS = path.join(import.meta.dirname, 'results');

export class Kept {
  readonly file: string;
  readonly #quick: boolean;
  #report: Report | null;

  constructor(quick: boolean) {
    fs.mkdirSync(RESULTS, { recursive: true });
    this.#quick = quick;
    this.file = path.join(RESULTS, quick ? 'quick.json' : 'latest.json');
    this.#report = fs.existsSync(this.file) ? (JSON.parse(fs.readFileSync(this.file, 'utf8')) as Report) : null;
  }

  /** Null where nothing was kept yet. */
  get report(): Report | null {
    return this.#report;
  }

  /** Whether all entrants were measured already, at this commit and in so many rounds. */
  has({ name, entrants }: Experiment, { commit, rounds }: { commit: string; rounds: number }): boolean {
    const known = this.#report?.experiments.find((one) => one.name === name);
    const counts = new Map(known?.rows.map(({ entrant, metrics }) => [entrant, metrics['value']!.count]));
    return known?.commit === commit && entrants.every((one) => (counts.get(one.name) ?? 0) >= rounds);
  }

  /** Holds what is kept to the targets of today, without measuring. */
  judgeAgain(): Report {
    const report = this.#report;
    if (report === null) throw new Error(`Cannot judge again: there is no ${this.file}; run once without --report`);
    const experiments = EXPERIMENTS.flatMap((experiment) => {
      const known = report.experiments.find(({ name }) => name === experiment.name);
      return known === undefined ? [] : [{ ...known, outcomes: judgeAgain(experiment, known) }];
    });
    this.write({ ...report, experiments });
    return this.#report!;
  }

  /** Puts what was measured now in the place of what was measured before; of the rest stays what is measured still. */
  write(now: Report): void {
    const all = new Map<string, ExperimentReport>();
    for (const one of [...(this.#report?.experiments ?? []), ...now.experiments]) all.set(one.name, one);
    const planned = EXPERIMENTS.filter(({ quick }) => quick || !this.#quick);
    const experiments = planned.map(({ name }) => all.get(name)).filter((one) => one !== undefined);
    const whole = { ...now, experiments };
    this.#report = whole;
    fs.writeFileSync(this.file, `${JSON.stringify(whole, null, 1)}\n`);
    if (this.#quick) return;
    fs.writeFileSync(path.join(RESULTS, 'targets.md'), targetsDocument(whole));
    fs.writeFileSync(path.join(RESULTS, 'chart.svg'), chartOf(whole));
  }
}
