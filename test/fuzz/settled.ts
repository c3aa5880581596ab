/** Waits for what must come about soon after an input. */

import { setTimeout as sleep } from 'node:timers/promises';

const LIMIT_MS = 30_000;

export async function settled(what: string, isSo: () => boolean): Promise<void> {
  for (const end = performance.now() + LIMIT_MS; !isSo(); await sleep(1)) {
    if (performance.now() > end) throw new Error(`not so in ${LIMIT_MS} ms: ${what}`);
  }
}
