/** Every input of the corpus, and for each target a short share of new ones. `npm run fuzz` runs more. */

import { describe, expect, test } from 'vitest';
import { readCorpus } from './corpus.ts';
import { Fuzzer } from './fuzzer.ts';
import { TARGETS } from './targets.ts';

const SEED = Number(process.env['BLKSNAP_SEED'] ?? Date.now() % 1_000_000);
const SHARE_MS = 500;

describe.each(TARGETS)('$name', (target) => {
  const corpus = readCorpus(target.name);

  test(`takes the ${corpus.length} inputs of its corpus`, async () => {
    expect(corpus.length).toBeGreaterThan(0);
    const fuzzer = new Fuzzer(target, 0);
    for (const { name, bytes } of corpus) {
      await fuzzer.run(bytes).catch((cause: unknown) => {
        throw new Error(`test/corpus/${target.name}/${name} does harm: ${String(cause)}`, { cause });
      });
    }
    await fuzzer.close();
  });

  test(`takes whatever is made up (seed ${SEED})`, async () => {
    const fuzzer = new Fuzzer(target, SEED);
    for (const end = performance.now() + SHARE_MS; performance.now() < end;) {
      const input = fuzzer.next();
      await fuzzer.run(input).catch((cause: unknown) => {
        const repeat = `npm run fuzz -- --target ${target.name} --seed ${SEED}`;
        throw new Error(`input ${fuzzer.count} of \`${repeat}\` does harm: ${String(cause)}`, { cause });
      });
    }
    expect(fuzzer.count).toBeGreaterThan(0);
    await fuzzer.close();
  });
});
