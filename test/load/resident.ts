/** How much memory of a process is in RAM. */

import fs from 'node:fs';
import { assert } from '../../src/util/assert.ts';
import { KIB } from '../../src/util/units.ts';

export function residentBytes(pid: number): number {
  const found = /^VmRSS:\s+(\d+) kB$/m.exec(fs.readFileSync(`/proc/${pid}/status`, 'utf8'));
  assert(found !== null, 'the process runs');
  return Number(found[1]) * KIB;
}
