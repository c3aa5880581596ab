/** Freezes mounted file systems for the time of a take: what they hold back is written, and nothing is written until
 *  they are thawed, so that the image shows all of it.
 *
 *  A child freezes and thaws, by fsfreeze(8) of util-linux. It thaws when it is told to, when the time is over, and when
 *  this process is gone, however it went; a freeze that comes late is undone at once. It thaws nothing that somebody
 *  else had frozen. */

import { spawn } from 'node:child_process';
import { BlksnapError } from '../util/errors.ts';
import { inTime } from '../util/in-time.ts';

export interface Frozen {
  /** Thaws, and tells whether all had stayed frozen until now. */
  thaw(): Promise<boolean>;
}

/** $1: the limit in seconds; the rest are the places. Says "frozen"; then waits for the end of its input. */
const SCRIPT = `
trap '' HUP INT TERM
limit=$1; shift
freeze() {
  words=$(timeout "$limit" fsfreeze --freeze "$1" 2>&1) && return 0
  case $words in *busy*) return 2 ;; esac
  fsfreeze --unfreeze "$1" 2>/dev/null
  echo "failed $words"
  return 1
}
attempt() {
  [ $# -eq 0 ] && { echo frozen; timeout "$limit" cat >/dev/null; return $?; }
  place=$1; shift
  freeze "$place"
  case $? in
    0) (attempt "$@"); status=$?; fsfreeze --unfreeze "$place"; return $status ;;
    2) attempt "$@" ;;
    *) return 1 ;;
  esac
}
attempt "$@"
`;

/** The child has its own limit; one that hangs in the kernel is left to itself after this much more. */
const GRACE_MS = 1000;

/** Freezes the file systems that are mounted there, all or none. Errors: ECANCELED with the reason; ETIMEDOUT. */
export async function freezeMounts(places: readonly string[], limitMs: number): Promise<Frozen> {
  const words = ['-c', SCRIPT, 'fsfreeze', String(limitMs / 1000), ...places];
  const child = spawn('/bin/sh', words, {
    detached: true,
    env: { ...process.env, LC_ALL: 'C' },
    stdio: ['pipe', 'pipe', 'ignore'],
  });
  const ended = new Promise<number | null>((resolve) => {
    child.once('error', () => resolve(null));
    child.once('exit', (code) => resolve(code));
  });
  // It may be gone before it is told to thaw.
  child.stdin.on('error', () => {});
  const late = (): BlksnapError =>
    new BlksnapError('ETIMEDOUT', `Cannot freeze ${places.join(', ')}: it was not frozen after ${limitMs} ms`);
  try {
    const said = await inTime(firstWords(child.stdout, ended), limitMs + GRACE_MS, late);
    if (said !== 'frozen') {
      throw new BlksnapError('ECANCELED', `Cannot freeze ${places.join(', ')}: ${said.replace('failed ', '')}`);
    }
  } catch (cause) {
    // Whatever it still freezes, it then thaws.
    child.stdin.end();
    throw cause;
  }
  return {
    thaw: async () => {
      child.stdin.end();
      return (await ended) === 0;
    },
  };
}

async function firstWords(stdout: NodeJS.ReadableStream, ended: Promise<unknown>): Promise<string> {
  let text = '';
  const heard = new Promise<void>((resolve) => {
    stdout.on('data', (data: Buffer) => {
      text += data.toString();
      if (text.includes('\n')) resolve();
    });
  });
  await Promise.race([heard, ended]);
  return text.trim() || 'fsfreeze could not be run (util-linux)';
}
