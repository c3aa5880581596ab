/** One target in a process of its own, for main.ts, which outlives it: a hang or a crash is a finding too.
 *
 *      worker.ts TARGET seed SEED MS CURRENT    new inputs for MS milliseconds; each is in CURRENT before it runs
 *      worker.ts TARGET input FILE              that one input
 *
 *  Exits with 1 after an input that did harm. */

import fs from 'node:fs';
import { readInput } from './corpus.ts';
import { Fuzzer } from './fuzzer.ts';
import { TARGETS } from './targets.ts';

const [name, mode, ...rest] = process.argv.slice(2);
const target = TARGETS.find((each) => each.name === name)!;

async function one(file: string): Promise<void> {
  const fuzzer = new Fuzzer(target, 0);
  await fuzzer.run(readInput(file));
  await fuzzer.close();
}

async function many(seed: number, ms: number, current: string): Promise<void> {
  const fuzzer = new Fuzzer(target, seed);
  for (const end = performance.now() + ms; performance.now() < end;) {
    const input = fuzzer.next();
    fs.writeFileSync(current, input);
    await fuzzer.run(input);
  }
  await fuzzer.close();
  console.log(`${target.name}: ${fuzzer.count} inputs`);
}

try {
  if (mode === 'input') await one(rest[0]!);
  else await many(Number(rest[0]), Number(rest[1]), rest[2]!);
} catch (cause) {
  console.error(cause);
  process.exit(1);
}
process.exit(0);
