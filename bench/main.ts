/** `npm run bench`: how fast we are beside others, measured in one run on one machine.
 *
 *  For each experiment the entrants take turns (A B C, A B C, …), each freshly started, so that whatever else the
 *  machine does hits all of them. docs/benchmarks.md says what is measured.
 *
 *      npm run bench -- [--quick] [--only NAME,…] [--rounds N] [--size GiB] [--json] [--check]
 *
 *  --only takes names of groups, experiments and entrants. Results go to bench/results/latest.json, of --quick to
 *  quick.json; --check compares with them instead.
 *  Ends with 1 when something could not be measured, or --check found something worse. */

import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { findProgram } from '../scripts/debian.mjs';
import { styled } from '../scripts/prepare.mjs';
import { chartOf } from './chart.ts';
import { regressions } from './check.ts';
import { EXPERIMENTS, makePlan } from './plan.ts';
import { tableOf, verdictsOf } from './report.ts';
import type { ExperimentReport, Report } from './report.ts';
import { Rounds } from './rounds.ts';

const RESULTS = path.join(import.meta.dirname, 'results');
function commitHere(): string {
  const args = ['rev-parse', '--short', 'HEAD'];
  const { status, stdout } = spawnSync('git', args, { cwd: RESULTS, encoding: 'utf8' });
  return status === 0 ? stdout.trim() : 'unknown'; // A package is no checkout.
}

function machine(): Record<string, string | number> {
  const [cpu] = os.cpus();
  const memoryGiB = Math.round(os.totalmem() / 1024 ** 3);
  return {
    cpu: cpu?.model ?? 'unknown',
    cpus: os.cpus().length,
    memoryGiB,
    kernel: os.release(),
    node: process.version,
    fio: execFileSync('fio', ['--version'], { encoding: 'utf8' }).trim(),
  };
}

function readReport(file: string): Report | null {
  return fs.existsSync(file) ? (JSON.parse(fs.readFileSync(file, 'utf8')) as Report) : null;
}

/** What was measured now in the place of what was measured before; the rest stays. */
function merged(kept: Report | null, now: Report): Report {
  const fresh = new Map(now.experiments.map((one) => [one.name, one]));
  const all = new Map([...(kept?.experiments ?? []).map((one) => [one.name, one] as const), ...fresh]);
  const order = EXPERIMENTS.map(({ name }) => all.get(name)).filter((one) => one !== undefined);
  return { ...now, experiments: order };
}

function print(report: ExperimentReport): void {
  console.log(styled('bold', `${report.title}  [${report.name}]`));
  console.log(`${tableOf(report).join('\n')}\n`);
}

/** Returns whether the kept results are as good as nothing to worry about. */
function check(kept: Report | null, file: string, now: Report): boolean {
  if (kept === null) throw new Error(`Cannot check: there is no ${file}; run once without --check`);
  const worse = regressions(
    kept,
    now.experiments.flatMap(({ outcomes }) => outcomes),
  );
  for (const line of worse) console.error(styled('red', `worse: ${line}`));
  if (worse.length === 0) console.error('check: nothing became worse beyond the noise');
  return worse.length === 0;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      only: { type: 'string' },
      rounds: { type: 'string' },
      size: { type: 'string' },
      json: { type: 'boolean', default: false },
      check: { type: 'boolean', default: false },
    },
  });
  if (findProgram('fio') === undefined) throw new Error('Cannot measure: fio is not installed (Debian package fio)');
  fs.mkdirSync(RESULTS, { recursive: true });
  const plan = makePlan(values);
  const failures = [...plan.absences];
  const file = path.join(RESULTS, values.quick ? 'quick.json' : 'latest.json');
  const kept = readReport(file);
  const commit = commitHere();
  const experiments: ExperimentReport[] = [];
  const rounds = new Rounds(plan, failures);
  try {
    for (const experiment of plan.experiments) {
      const report = await rounds.run(experiment, commit);
      experiments.push(report);
      if (!values.json) print(report);
    }
  } finally {
    rounds.close();
  }
  const report: Report = {
    machine: machine(),
    settings: { ...plan.settings, rounds: plan.rounds },
    experiments,
    failures,
  };
  if (values.json) process.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
  else console.log(verdictsOf(experiments.flatMap(({ outcomes }) => outcomes)).join('\n'));
  for (const failure of failures) console.error(styled('red', failure));
  const good = values.check ? check(kept, file, report) : true;
  if (!values.check && plan.complete) {
    const whole = merged(kept, report);
    fs.writeFileSync(file, `${JSON.stringify(whole, null, 1)}\n`);
    if (!values.quick) fs.writeFileSync(path.join(RESULTS, 'chart.svg'), chartOf(whole));
  }
  process.exitCode = good && failures.length === 0 ? 0 : 1;
}

await main();
