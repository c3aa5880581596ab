import { expect, it } from 'vitest';
import { crc32 } from './crc32.ts';

it('has the values of the standard', () => {
  expect(crc32(new Uint8Array())).toBe(0);
  expect(crc32(Buffer.from('123456789'))).toBe(0xcbf43926);
  expect(crc32(new Uint8Array(32).fill(0xff))).toBe(0xff6cab0b);
});
