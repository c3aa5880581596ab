/** The state of the machine's memory before a run: what others left in the page cache, and memory in small pieces, can make
 *  first writes half as fast, ours as well as those of others, and not to the same degree. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';

const STEPS = [
  ['/proc/sys/vm/drop_caches', '3'],
  ['/proc/sys/vm/compact_memory', '1'],
] as const;

/** Empties the page cache and joins free memory, where root runs this on Linux. Returns what could not be done, a line each. */
export function tidyMemory(): string[] {
  if (process.platform !== 'linux' || process.getuid?.() !== 0) return [];
  execFileSync('sync');
  return STEPS.flatMap(([file, value]) => {
    try {
      fs.writeFileSync(file, value);
      return [];
    } catch (cause) {
      return [`memory is as others left it: ${(cause as Error).message}`];
    }
  });
}
