/** `npm run mutations [-- --only N,N]`: puts each deliberate bug into a copy of the sources, and lets the simulator look for
 *  it there. A bug that is not found within STEPS steps is a failure; the working tree is never touched. */

import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { readCommandLine } from '../../scripts/command-line.mjs';
import { MUTATIONS } from './mutations.ts';
import type { Mutation } from './mutations.ts';

const ROOT = path.join(import.meta.dirname, '../..');
const STEPS_PER_SEED = 60;
const SEEDS = 80;
/** For all steps together. A run that does not end within it has found nothing. */
export const LONGEST_MS = 900_000;

export interface Found {
  readonly mutation: Mutation;
  /** Steps until it was found, or null. */
  readonly steps: number | null;
  readonly how: string;
}

/** Looks for one bug, in a copy that is made and removed. */
export function hunt(mutation: Mutation): Found {
  const copy = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-mutation-'));
  try {
    for (const name of ['src', 'test/sim', 'scripts/command-line.mjs', 'package.json', 'tsconfig.json'])
      fs.cpSync(path.join(ROOT, name), path.join(copy, name), { recursive: true });
    fs.symlinkSync(path.join(ROOT, 'node_modules'), path.join(copy, 'node_modules'));
    const file = path.join(copy, mutation.file);
    const parts = fs.readFileSync(file, 'utf8').split(mutation.text);
    if (parts.length !== 2)
      throw new Error(`${mutation.file}: the text stands ${parts.length - 1} times, want once: ${mutation.text}`);
    fs.writeFileSync(file, parts.join(mutation.replacement));
    const args = [
      '--import',
      'tsx',
      'test/sim/main.ts',
      '--seeds',
      `${SEEDS}`,
      '--steps',
      `${STEPS_PER_SEED}`,
      '--no-shorten',
    ];
    const { stdout, stderr, status, error } = spawnSync(process.execPath, args, {
      cwd: copy,
      encoding: 'utf8',
      timeout: LONGEST_MS,
    });
    if (error !== undefined) return { mutation, steps: null, how: `it did not end: ${error.message}` };
    const lines = stdout.trim().split('\n');
    const steps = /^(\d+) steps in/.exec(lines.at(-1) ?? '')?.[1];
    const how = lines.find((line) => /: step -?\d+ \(/.test(line));
    if (steps === undefined || (how === undefined && status !== 0))
      throw new Error(`The simulator did not run: ${stderr}`);
    return { mutation, steps: how === undefined ? null : Number(steps), how: how ?? '' };
  } finally {
    fs.rmSync(copy, { recursive: true });
  }
}

if (process.argv[1] === import.meta.filename) {
  const { values } = readCommandLine(import.meta.filename, { options: { only: { type: 'string' } } });
  const chosen = values.only === undefined ? MUTATIONS : values.only.split(',').map((i) => MUTATIONS[Number(i)]);
  for (const mutation of chosen) {
    if (mutation === undefined) {
      console.error(`Cannot run: --only ${values.only}: want numbers from 0 to ${MUTATIONS.length - 1}`);
      process.exit(2);
    }
    const { steps, how } = hunt(mutation);
    console.log(
      `${MUTATIONS.indexOf(mutation)}. ${mutation.why}: ${steps === null ? 'NOT FOUND' : `${steps} steps`}\n     ${how}`,
    );
    if (steps === null) process.exitCode = 1;
  }
}
