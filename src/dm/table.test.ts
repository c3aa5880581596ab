import fc from 'fast-check';
import { expect, it } from 'vitest';
import { formatTable, parseTable, splitWords } from './table.ts';

it('reads what dmsetup reads', () => {
  const text = '\n# a comment\n0 1024 linear /dev/sdb 2048\n  1024\t8 zero  \n1032 8 error\n';
  expect(parseTable(text)).toEqual([
    { start: 0, length: 1024, target: 'linear', args: ['/dev/sdb', '2048'] },
    { start: 1024, length: 8, target: 'zero', args: [] },
    { start: 1032, length: 8, target: 'error', args: [] },
  ]);
  expect(formatTable(parseTable(text))).toBe('0 1024 linear /dev/sdb 2048\n1024 8 zero\n1032 8 error');
});

it.each([
  ['', /no line/],
  ['# nothing', /no line/],
  ['0 8', /line 1.*START LENGTH TARGET/],
  ['0 8 zero\n9 8 zero', /line 2.*starts at sector 9, want 8/],
  ['0 8 zero\n4 8 zero', /starts at sector 4, want 8/],
  ['8 8 zero', /starts at sector 8, want 0/],
  ['0 0 zero', /length is 0/],
  ['0 -8 zero', /"-8" is no number/],
  ['0 8.5 zero', /"8.5" is no number/],
  ['0 0x8 zero', /"0x8" is no number/],
  ['0 99999999999999999999 zero', /is no number/],
  [`0 ${2 ** 44} zero\n${2 ** 44} 8 zero`, /want at most/],
])('refuses %j', (text, words) => {
  expect(() => parseTable(text)).toThrow(words);
});

it('takes a backslash for the next character', () => {
  expect(splitWords('a\\ b c\\\\d')).toEqual(['a b', 'c\\d']);
});

it('reads what it writes', () => {
  const word = fc.string({ minLength: 1 }).filter((text) => !/[\n\r\u2028\u2029]/.test(text) && text.trim() !== '');
  const line = fc.record({
    length: fc.integer({ min: 1, max: 1e6 }),
    target: word.filter((text) => !text.startsWith('#')),
    args: fc.array(word),
  });
  fc.assert(
    fc.property(fc.array(line, { minLength: 1 }), (lines) => {
      let start = 0;
      const table = lines.map((one) => {
        const placed = { start, ...one };
        start += one.length;
        return placed;
      });
      expect(parseTable(formatTable(table))).toEqual(table);
    }),
  );
});
