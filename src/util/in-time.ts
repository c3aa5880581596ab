/** A limit on the time that somebody waits for work. The work itself goes on. */

import type { BlksnapError } from './errors.ts';

/** What the work comes to. Errors: what it fails with; `late()` when the time is over before. */
export async function inTime<T>(work: Promise<T>, limitMs: number, late: () => BlksnapError): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const over = new Promise<never>((_, reject) => (timer = setTimeout(() => reject(late()), Math.max(0, limitMs))));
  try {
    return await Promise.race([work, over]);
  } finally {
    clearTimeout(timer);
  }
}
