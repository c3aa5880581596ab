import { expect, test } from 'vitest';
import { brief } from './brief.ts';

test('long texts end early, and say so', () => {
  expect(brief('short')).toBe('short');
  expect(brief('x'.repeat(2000))).toBe('x'.repeat(2000));
  expect(brief('x'.repeat(2001))).toBe(`${'x'.repeat(2000)} … and more`);
});
