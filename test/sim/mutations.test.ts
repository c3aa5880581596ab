/** The list of deliberate bugs fits the sources: a change of the core that takes a bug's place away is noticed at once. */

import fs from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { MUTATIONS } from './mutations.ts';

const ROOT = path.join(import.meta.dirname, '../..');

describe('deliberate bugs', () => {
  it('are listed, at least 25, each in the docs', () => {
    const told = fs.readFileSync(path.join(ROOT, 'docs/reliability.md'), 'utf8');
    expect(MUTATIONS.filter(({ why }) => !told.includes(`\n| ${why} | `)).map(({ why }) => why)).toEqual([]);
    expect(told).toContain(`each of these ${MUTATIONS.length} bugs`);
    expect(new Set(MUTATIONS.map(({ why }) => why)).size).toBe(MUTATIONS.length);
    expect(MUTATIONS.length).toBeGreaterThanOrEqual(25);
  });

  it.each(MUTATIONS)('have their place in the sources: $why', ({ file, text }) => {
    expect(fs.readFileSync(path.join(ROOT, file), 'utf8').split(text)).toHaveLength(2);
  });
});
