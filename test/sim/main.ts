/** `npm run sim -- [--seed S] [--steps N] [--keep 1,2,3]`: a program of N steps against the model (docs/reliability.md);
 *  with `--seeds K` K of them, with `--minutes M` as many as that takes, from seed S on. A failure prints one command
 *  that repeats it, and another for a shortened program, which `--no-shorten` spares. */

import { readCommandLine } from '../../scripts/command-line.mjs';
import { runProgram } from './program.ts';
import type { Outcome, Program } from './program.ts';
import { shorten } from './shorten.ts';

const { values } = readCommandLine(import.meta.filename, {
  options: {
    seed: { type: 'string', default: '1' },
    steps: { type: 'string', default: '100' },
    seeds: { type: 'string', default: '1' },
    minutes: { type: 'string' },
    keep: { type: 'string' },
    'no-shorten': { type: 'boolean', default: false },
  },
});

function commandOf({ seed, steps, keep }: Program): string {
  return `npm run sim -- --seed ${seed} --steps ${steps}${keep === undefined ? '' : ` --keep ${keep.join(',')}`}`;
}

async function report(program: Program, { failure, failedAt, kinds }: Outcome): Promise<void> {
  console.log(`seed ${program.seed}: step ${failedAt} (${kinds.get(failedAt) ?? 'start'}): ${failure!.message}`);
  console.log(failure!.stack?.split('\n').slice(1, 6).join('\n'));
  console.log(`repeat:   ${commandOf(program)}`);
  if (values['no-shorten']) return;
  const upTo = [...kinds.keys()].filter((number) => failedAt < 0 || number <= failedAt);
  const short = await shorten({ ...program, keep: upTo }, failure!.message);
  const steps = short.keep!.map((number) => `${number} ${kinds.get(number) ?? ''}`).join(', ');
  console.log(`shortest: ${commandOf(short)}\n          (${steps})`);
}

const steps = Number(values.steps);
const keep = values.keep?.split(',').map(Number);
const began = performance.now();
const goesOn = (done: number): boolean =>
  values.minutes === undefined
    ? done < Number(values.seeds)
    : performance.now() - began < Number(values.minutes) * 60_000;
let stepsRun = 0;
const counts = new Map<string, number>();
for (let done = 0; goesOn(done); done++) {
  const program: Program = { seed: Number(values.seed) + done, steps, ...(keep !== undefined && { keep }) };
  const outcome = await runProgram(program);
  stepsRun += outcome.stepsRun;
  for (const [what, count] of outcome.counts) counts.set(what, (counts.get(what) ?? 0) + count);
  if (outcome.failure !== null) {
    await report(program, outcome);
    process.exitCode = 1;
    break;
  }
  console.log(`seed ${program.seed}: ${outcome.stepsRun} steps, trace ${outcome.traceHash.toString(16)}`);
}
console.log(`backups: ${[...counts].map(([what, count]) => `${count} ${what}`).join(', ')}`);
console.log(`${stepsRun} steps in ${((performance.now() - began) / 1000).toFixed(1)} s`);
