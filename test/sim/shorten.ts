/** Shortens a program that fails: leaves out halves, quarters, … and at last single steps, as long as it fails. */

import { runProgram } from './program.ts';
import type { Program } from './program.ts';

const MOST_RUNS = 200;
const LONGEST_MS = 60_000;

export async function shorten(program: Program, message: string): Promise<Program> {
  const { seed, steps } = program;
  const kind = kindOf(message);
  const began = performance.now();
  let runs = 0;
  let keep = [...(program.keep ?? Array.from({ length: steps }, (_, i) => i))];
  for (let size = Math.ceil(keep.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let at = 0; at < keep.length && runs < MOST_RUNS && performance.now() - began < LONGEST_MS;) {
      const without = keep.toSpliced(at, size);
      const { failure } = await runProgram({ seed, steps, keep: without });
      runs++;
      if (failure !== null && kindOf(failure.message) === kind) keep = without;
      else at += size;
    }
  }
  return { seed, steps, keep };
}

/** A message without the numbers and names that vary. */
function kindOf(message: string): string {
  return message.replace(/@[0-9a-f-]+/g, '').replace(/\d+/g, '#');
}
