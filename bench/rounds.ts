/** Runs experiments: the entrants in turns, round by round, each in a directory of its own beside the disk. */

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { makeFullDisk } from './disk-file.ts';
import type { Entrant, Experiment, PlaceName, Sample, Settings } from './measurement.ts';
import { rowsOf } from './report.ts';
import type { ExperimentReport } from './report.ts';
import { judge } from './targets.ts';

function showProgress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}

export class Rounds {
  readonly #rounds: number;
  readonly #settings: Settings;
  readonly #failures: string[];
  /** The directory of each place that was needed. */
  readonly #bases = new Map<PlaceName, string>();
  readonly #interrupt = (): void => {
    this.close();
    process.exit(130);
  };

  /** What fails is added to `failures`. */
  constructor({ rounds, settings }: { readonly rounds: number; readonly settings: Settings }, failures: string[]) {
    this.#rounds = rounds;
    this.#settings = settings;
    this.#failures = failures;
    process.once('SIGINT', this.#interrupt);
    process.once('SIGTERM', this.#interrupt);
  }

  async run(experiment: Experiment, commit: string): Promise<ExperimentReport> {
    const samples = new Map<string, Array<Sample | null>>(experiment.entrants.map(({ name }) => [name, []]));
    for (let round = 1; round <= this.#rounds; round++) {
      for (const entrant of experiment.entrants) {
        showProgress(`${experiment.name} ${round}/${this.#rounds} ${entrant.title}`);
        samples.get(entrant.name)!.push(await this.#measure(experiment, entrant));
      }
    }
    showProgress('');
    const series = [...samples].map(([entrant, list]) => ({
      experiment: experiment.name,
      entrant,
      samples: list,
    }));
    const { name, title, group, unit } = experiment;
    const date = new Date().toISOString();
    const [rows, outcomes] = [rowsOf(experiment, series), judge(experiment, series)];
    return { name, title, group, unit, date, commit, rows, outcomes };
  }

  async #measure(experiment: Experiment, entrant: Entrant): Promise<Sample | null> {
    const base = this.#base(experiment.place);
    const dir = fs.mkdtempSync(path.join(base, 'run-'));
    try {
      return await entrant.measure({ dir, disk: path.join(base, 'disk.raw'), settings: this.#settings });
    } catch (error) {
      const failure = `${experiment.name}, ${entrant.name}: ${(error as Error).message}`;
      showProgress('');
      console.error(failure);
      this.#failures.push(failure);
      return null;
    } finally {
      fs.rmSync(dir, { recursive: true, force: true });
    }
  }

  #base(place: PlaceName): string {
    const known = this.#bases.get(place);
    if (known !== undefined) return known;
    const parent = place === 'memory' && fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir();
    const base = fs.mkdtempSync(path.join(parent, 'blksnap-bench-'));
    this.#bases.set(place, base);
    makeFullDisk(path.join(base, 'disk.raw'), this.#settings.diskBytes);
    return base;
  }

  /** Removes all files. Safe to call twice. */
  close(): void {
    process.off('SIGINT', this.#interrupt);
    process.off('SIGTERM', this.#interrupt);
    for (const base of this.#bases.values()) fs.rmSync(base, { recursive: true, force: true });
    this.#bases.clear();
  }
}
