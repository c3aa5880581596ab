/** A daemon that serves kernel devices is in the way of its own machine's writes: when memory is short the kernel
 *  writes to them, and waits for us. So the program and its libraries stay in memory, our allocations do not wait for
 *  such writes, and the kernel ends others first.
 *
 *  Memory that is no file's is not locked: V8 gives parts of its heap back to the system, which the system refuses for
 *  locked memory, and V8 then ends the process. Without swap it stays in memory anyway. */

import fs from 'node:fs';
import { lockMapping } from '../io/control-sys.ts';
import { codeOfErrno } from '../util/errors.ts';
import type { Host } from './host.ts';

const LAST_TO_GO = '-1000';

let guarded: Promise<void> | null = null;

/** Once per process, and for good. What the system refuses is logged: a device is useful without it. */
export function guardWritePath(host: Pick<Host, 'io' | 'log'>): Promise<void> {
  guarded ??= guard(host);
  return guarded;
}

async function guard({ io, log }: Pick<Host, 'io' | 'log'>): Promise<void> {
  const complain = (what: string, why: string): void =>
    log.warn({ what, why }, 'the daemon may stall when memory is short');
  const locked = lockProgram();
  if (locked < 0) complain('the program is not locked in memory', codeOfErrno(-locked));
  try {
    fs.writeFileSync('/proc/self/oom_score_adj', LAST_TO_GO);
    await io.call('guardWritePath', {});
  } catch (cause) {
    complain('memory is not reserved', (cause as Error).message);
  }
}

/** Locks every private mapping of a file: code, constants, libraries. 0, or the last -errno. */
function lockProgram(): number {
  let result = 0;
  for (const line of fs.readFileSync('/proc/self/maps', 'utf8').split('\n')) {
    const [, from, to] = /^([0-9a-f]+)-([0-9a-f]+) r..p .* \/\S/.exec(line) ?? [];
    if (from === undefined || to === undefined) continue;
    const [start, end] = [BigInt(`0x${from}`), BigInt(`0x${to}`)];
    result = Math.min(result, lockMapping(start, Number(end - start)));
  }
  return result;
}
