/** What a server costs: CPU time and memory of a process and all it started, from /proc (Linux). CPU time depends
 *  less on what else the machine does than any rate. */

import fs from 'node:fs';

/** USER_HZ, which is the same on every architecture that Node runs on. */
const MS_PER_TICK = 10;

interface Times {
  readonly pid: number;
  readonly parent: number;
  readonly ticks: number;
}

/** The text of /proc/PID/stat. */
function timesOf(text: string): Times {
  // The name may hold spaces and parentheses; fields are counted from its end: state, parent, …
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const [utime, stime, childUtime, childStime] = fields.slice(11, 15).map(Number);
  const ticks = utime! + stime! + childUtime! + childStime!;
  return { pid: Number.parseInt(text, 10), parent: Number(fields[1]), ticks };
}

/** /proc/PID/stat of all processes. */
function readProcesses(): string {
  const one = (pid: string): string => {
    try {
      return fs.readFileSync(`/proc/${pid}/stat`, 'utf8');
    } catch {
      return ''; // It is gone.
    }
  };
  const pids = fs.readdirSync('/proc').filter((entry) => /^\d+$/.test(entry));
  return pids.map(one).join('');
}

/** CPU time of the process, its threads, and its children, ended ones too; now, or when `processes` was read. */
export function cpuMs(pid: number, processes: string = readProcesses()): number {
  const lines = processes.split('\n').filter((line) => /^\d+ \(/.test(line));
  const all = new Map(lines.map(timesOf).map((times) => [times.pid, times]));
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
