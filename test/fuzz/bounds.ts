/** What any one input may cost: processor time, time in all, and memory at its highest. Linux alone tells the last. */

import fs from 'node:fs';
import { MIB } from '../../src/util/units.ts';

/** Far above what an honest input of the size takes, and far below what an attack wants. */
const CPU_MS = 2000;
const WALL_MS = 60_000;
const MEMORY_BYTES = 160 * MIB;

/** Rejects when `run` does, and when it costs more than any input may. */
export async function bounded(run: () => Promise<void>): Promise<void> {
  const before = residentBytes();
  resetPeak();
  const cpu = process.cpuUsage();
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`it did not end in ${WALL_MS} ms`)), WALL_MS);
  });
  try {
    await Promise.race([run(), late]);
  } finally {
    clearTimeout(timer);
  }
  const { user, system } = process.cpuUsage(cpu);
  const cpuMs = (user + system) / 1000;
  if (cpuMs > CPU_MS) throw new Error(`it took ${cpuMs.toFixed(0)} ms of processor time, want at most ${CPU_MS}`);
  const grown = peakBytes() - before;
  if (grown > MEMORY_BYTES)
    throw new Error(`memory rose by ${(grown / MIB).toFixed(0)} MiB, want at most ${MEMORY_BYTES / MIB}`);
}

function statusBytes(field: string): number {
  const line = new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(fs.readFileSync('/proc/self/status', 'utf8'));
  return Number(line![1]) * 1024;
}

function residentBytes(): number {
  return process.platform === 'linux' ? statusBytes('VmRSS') : 0;
}

function peakBytes(): number {
  return process.platform === 'linux' ? statusBytes('VmHWM') : 0;
}

/** proc(5): 5 sets the peak to what is resident now. */
function resetPeak(): void {
  if (process.platform === 'linux') fs.writeFileSync('/proc/self/clear_refs', '5');
}
