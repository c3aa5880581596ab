import { expect, it } from 'vitest';
import { readable } from './log.ts';

it('turns a JSON line into one for a person', () => {
  const line = JSON.stringify({ level: 40, time: 0, pid: 1, disk: 'vm', images: ['a'], msg: 'low on space' });
  expect(readable(line)).toMatch(/^\d\d:\d\d:\d\d warn {2}low on space {2}disk=vm {2}images=\["a"\]\n$/);
});
