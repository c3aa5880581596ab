/** docs/comparison.md holds what it says of this project by tests: each of its rows names some that exist, by file, and
 *  in brackets by words of their titles. */

import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { expect, it } from 'vitest';

const ROOT = path.join(import.meta.dirname, '..');
const [features, tests, more] = tablesOf(readFileSync(path.join(ROOT, 'docs/comparison.md'), 'utf8'));

/** The rows of each table, below its head. */
function tablesOf(text: string): string[][][] {
  const tables = text.match(/(?:^\|.*\n)+/gm) ?? [];
  return tables.map(
    (table) =>
    table.trimEnd().split('\n').slice(2).map((row) => row.split('|').slice(1, -1).map((cell) => cell.trim())), // prettier-ignore
  );
}

it('has a row of tests for every feature', () => {
  expect(features!.length).toBeGreaterThan(10);
  expect(tests!.map(([row]) => row)).toEqual(features!.map(([row]) => row));
});

it('names tests that exist', () => {
  const scripts = Object.keys(
    (JSON.parse(readFileSync(path.join(ROOT, 'package.json'), 'utf8')) as { scripts: Record<string, string> }).scripts,
  );
  const wrong = [...tests!, ...more!].flatMap(([row = '', cell = '']) => {
    const named = Array.from(cell.matchAll(/`([^`]+)`(?: \(([^)]+)\))?/g), ([, name, title]) => ({
      name: name!,
      title,
    }));
    const missing = named.filter(({ name, title = '' }) => {
      const script = /^npm run (\S+)$/.exec(name)?.[1];
      if (script !== undefined) return !scripts.includes(script);
      const file = path.join(ROOT, name);
      return !name.endsWith('.test.ts') || !existsSync(file) || !readFileSync(file, 'utf8').includes(title);
    });
    if (!named.some(({ name }) => name.endsWith('.test.ts'))) return [`${row}: no test`];
    return missing.map(({ name, title }) => `${row}: ${name} ${title}`);
  });
  expect(wrong).toEqual([]);
});
