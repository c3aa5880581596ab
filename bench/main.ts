/** `npm run bench`: how fast we are beside others, measured in one run on one machine.
 *
 *  For each experiment the entrants take turns (A B C, A B C, …), each freshly started, so that whatever else the
 *  machine does hits all of them. docs/benchmarks.md says what is measured.
 *
 *      npm run bench -- [--quick] [--only NAME,…] [--rounds N] [--size GiB] [--json] [--check | --continue | --report]
 *
 *  --only takes names of groups, experiments and entrants. Results go to bench/results/latest.json, of --quick to
 *  quick.json; --check compares with them instead. --report measures nothing: it holds what is kept to the targets of
 *  today, and writes the verdicts and the chart again.
 *  Ends with 1 when something could not be measured, or --check found something worse. */

import { execFileSync, spawnSync } from 'node:child_process';
import os from 'node:os';
import { readCommandLine } from '../scripts/command-line.mjs';
import { findProgram } from '../scripts/debian.mjs';
import { styled } from '../scripts/prepare.mjs';
import { regressions } from './check.ts';
import { Kept } from './kept.ts';
import { makePlan } from './plan.ts';
import { tableOf } from './report.ts';
import type { ExperimentReport, Report } from './report.ts';
import { Rounds } from './rounds.ts';
import { tidyMemory } from './tidy-memory.ts';
import { summaryOf } from './verdicts.ts';

// With it each start of Node reads certificates, for longer than all else that Node does before it runs a program.
delete process.env['NODE_EXTRA_CA_CERTS'];

function commitHere(): string {
  const args = ['rev-parse', '--short', 'HEAD'];
  const { status, stdout } = spawnSync('git', args, { cwd: import.meta.dirname, encoding: 'utf8' });
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

function print(report: ExperimentReport): void {
  console.log(styled('bold', `${report.title}  [${report.name}]`));
  console.log(`${tableOf(report).join('\n')}\n`);
}

function printSummary(experiments: readonly ExperimentReport[]): void {
  console.log(summaryOf(experiments.flatMap(({ outcomes }) => outcomes)).join('\n'));
}

/** Returns whether nothing became worse. */
function check(kept: Report, now: Report): boolean {
  const worse = regressions(
    kept,
    now.experiments.flatMap(({ outcomes }) => outcomes),
  );
  for (const line of worse) console.error(styled('red', `worse: ${line}`));
  if (worse.length === 0) console.error('check: nothing became worse beyond the noise');
  return worse.length === 0;
}

async function main(): Promise<void> {
  const { values } = readCommandLine(import.meta.filename, {
    options: {
      quick: { type: 'boolean', default: false },
      only: { type: 'string' },
      rounds: { type: 'string' },
      size: { type: 'string' },
      json: { type: 'boolean', default: false },
      check: { type: 'boolean', default: false },
      continue: { type: 'boolean', default: false },
      report: { type: 'boolean', default: false },
    },
  });
  const kept = new Kept(values.quick);
  if (values.report) {
    printSummary(kept.judgeAgain().experiments);
    return;
  }
  if (findProgram('fio') === undefined) throw new Error('Cannot measure: fio is not installed (Debian package fio)');
  const plan = makePlan(values);
  const failures = [...plan.absences];
  const before = kept.report;
  if (values.check && before === null) {
    throw new Error(`Cannot check: there is no ${kept.file}; run once without --check`);
  }
  const keeps = plan.complete && !values.check;
  const commit = commitHere();
  const { rounds } = plan;
  const report = {
    machine: machine(),
    settings: { ...plan.settings, rounds },
    experiments: [] as ExperimentReport[],
    failures,
  };
  for (const line of tidyMemory()) console.error(line);
  const runner = new Rounds(plan, failures);
  try {
    for (const experiment of plan.experiments) {
      if (values.continue && kept.has(experiment, { commit, rounds })) continue;
      report.experiments.push(await runner.run(experiment, commit));
      if (!values.json) print(report.experiments.at(-1)!);
      if (keeps) kept.write(report);
    }
  } finally {
    runner.close();
  }
  const { experiments } = values.continue ? (kept.report ?? report) : report;
  if (values.json) process.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
  else printSummary(experiments);
  for (const failure of failures) console.error(styled('red', failure));
  const good = values.check ? check(before!, report) : true;
  console.error(`in ${Math.round(performance.now() / 1000)} s`);
  process.exitCode = good && failures.length === 0 ? 0 : 1;
}

await main();
