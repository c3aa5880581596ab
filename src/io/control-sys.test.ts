import { spawn } from 'node:child_process';
import fs from 'node:fs';
import { expect, test } from 'vitest';
import { runWhenIdle } from './control-sys.ts';
import { ffiAvailable } from './sys.ts';

test.skipIf(!ffiAvailable())('a thread is put into the class for idle work (Linux only)', () => {
  const child = spawn('sleep', ['60']);
  try {
    expect(runWhenIdle(child.pid!)).toBe(0);
    // proc(5): the policy is the 41st field; the 2nd ends with the last parenthesis.
    const fields = fs.readFileSync(`/proc/${child.pid}/stat`, 'utf8').split(') ').at(-1)!.split(' ');
    expect(fields[41 - 3]).toBe('5');
  } finally {
    child.kill();
  }
});
