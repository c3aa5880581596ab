/** What a server costs: CPU time and memory of a process and all it started, from /proc (Linux). CPU time depends
 *  less on what else the machine does than any rate. */

import fs from 'node:fs';

/** USER_HZ, which is the same on every architecture that Node runs on. */
const MS_PER_TICK = 10;

interface Times {
  readonly parent: number;
  readonly ticks: number;
}

/** Null where the process is gone. */
function timesOf(pid: number): Times | null {
  try {
    const text = fs.readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The name may hold spaces and parentheses; fields are counted from its end: state, parent, …
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    const [utime, stime, childUtime, childStime] = fields.slice(11, 15).map(Number);
    return { parent: Number(fields[1]), ticks: utime! + stime! + childUtime! + childStime! };
  } catch {
    return null;
  }
}

/** CPU time of the process, its threads, and its children, ended ones too. */
export function cpuMs(pid: number): number {
  const all = new Map<number, Times>();
  for (const entry of fs.readdirSync('/proc')) {
    const times = /^\d+$/.test(entry) ? timesOf(Number(entry)) : null;
    if (times !== null) all.set(Number(entry), times);
  }
  const descends = (one: number): boolean => {
    for (let at = one; at > 1; at = all.get(at)?.parent ?? 0) if (at === pid) return true;
    return false;
  };
  let ticks = 0;
  for (const [one, times] of all) if (descends(one)) ticks += times.ticks;
  return ticks * MS_PER_TICK;
}

/** Memory that the process holds now. */
export function residentMiB(pid: number): number {
  const status = fs.readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmRSS:\s*(\d+) kB/m.exec(status)?.[1]) / 1024;
}
