import { expect, it } from 'vitest';
import { EXIT_FAILURE, exitCodeOf } from './exit-codes.ts';
import { formatTable, formatTime } from './output.ts';
import { formatAdvance } from './progress.ts';

it('lines up tables: text to the left, numbers to the right, no trailing blanks', () => {
  const rows = [
    { name: 'a', size: 5 },
    { name: 'long', size: 12_345 },
  ];
  const table = formatTable(
    [
      { heading: 'SIZE', value: ({ size }) => String(size), right: true },
      { heading: 'NAME', value: ({ name }) => name },
    ],
    rows,
  );
  expect(table).toBe(' SIZE  NAME\n    5  a\n12345  long');
});

it('tells how far a work is, how fast, and how long yet', () => {
  const advance = { bytesDone: 512 * 2 ** 20, bytesTotal: 2 ** 30, seconds: 2 };
  expect(formatAdvance(advance, true)).toBe(
    '[############------------]   50%  512 MiB of 1.00 GiB  256 MiB/s  2.0 s left',
  );
  expect(formatAdvance({ bytesDone: 0, bytesTotal: 0, seconds: 0 }, false)).toBe('100%  0 B of 0 B  0 B/s');
});

it('tells local time', () => {
  expect(formatTime(new Date(2026, 10, 21, 7, 8, 9).toISOString())).toBe('2026-11-21 07:08:09');
});

it('has an exit code for what a caller may want to tell apart, and one for the rest', () => {
  expect([exitCodeOf('ECONNREFUSED'), exitCodeOf('EBADMSG'), exitCodeOf('ENOSPC')]).toEqual([3, 4, 7]);
  expect(exitCodeOf('EIO')).toBe(EXIT_FAILURE);
});
