/** `npm run fuzz -- --minutes N [--target T] [--seed S]`: made-up and mutated inputs for every target, N minutes in all.
 *  An input that does harm (also by a hang or a crash) is made small, kept in test/corpus/, and ends its target's run. */

import { spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { readCommandLine } from '../../scripts/command-line.mjs';
import { keep } from './corpus.ts';
import { shrink } from './shrink.ts';
import { TARGETS } from './targets.ts';

const WORKER = ['--import', 'tsx', path.join(import.meta.dirname, 'worker.ts')];
/** No input takes as long: bounds.ts. */
const HANG_MS = 150_000;
const SHRINK_TRIES = 150;

const { values } = readCommandLine(import.meta.filename, {
  options: { minutes: { type: 'string', default: '10' }, target: { type: 'string' }, seed: { type: 'string' } },
});
const seed = Number(values.seed ?? Date.now() % 1_000_000);
const minutes = Number(values.minutes);
const chosen = TARGETS.filter(({ name }) => values.target === undefined || name === values.target);
if (!(minutes > 0) || !Number.isSafeInteger(seed) || seed < 0 || chosen.length === 0) {
  const names = TARGETS.map(({ name }) => name).join(', ');
  console.error(`Cannot run: want --minutes above 0, --seed as a whole number, and --target as one of ${names}`);
  process.exit(2);
}
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-fuzz-'));

/** Resolves with what the worker said at its end; null when all inputs were harmless. */
function runWorker(target: string): Promise<string | null> {
  const current = path.join(scratch, 'current');
  fs.writeFileSync(current, '');
  const ms = (minutes * 60_000) / chosen.length;
  const child = spawn(process.execPath, [...WORKER, target, 'seed', String(seed), String(ms), current], {
    stdio: ['ignore', 'inherit', 'pipe'],
  });
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text));
  const watch = setInterval(() => {
    if (Date.now() - fs.statSync(current).mtimeMs > HANG_MS) child.kill('SIGKILL');
  }, 1000);
  return new Promise((resolve) => {
    child.on('close', (code, signal) => {
      clearInterval(watch);
      resolve(code === 0 ? null : said || `it was ended by ${signal ?? `exit code ${code}`}`);
    });
  });
}

function harms(target: string, input: Uint8Array): boolean {
  const file = path.join(scratch, 'smaller');
  fs.writeFileSync(file, input);
  const { status } = spawnSync(process.execPath, [...WORKER, target, 'input', file], {
    stdio: 'ignore',
    timeout: HANG_MS,
    killSignal: 'SIGKILL',
  });
  return status !== 0;
}

console.log(`${minutes} minutes with seed ${seed}: ${chosen.map(({ name }) => name).join(', ')}`);
for (const { name } of chosen) {
  const said = await runWorker(name);
  if (said === null) continue;
  process.exitCode = 1;
  const input = fs.readFileSync(path.join(scratch, 'current'));
  console.log(`${name}: an input of ${input.length} bytes did harm\n${said}`);
  const alone = harms(name, input);
  const small = alone ? shrink(input, (smaller) => harms(name, smaller), SHRINK_TRIES) : input;
  const file = keep(name, small);
  console.log(`kept in ${file}${alone ? '' : '; by itself it does none: what was before it counts'}`);
}
fs.rmSync(scratch, { recursive: true });
