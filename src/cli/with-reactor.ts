/** A reactor for a command that does I/O itself, with an ear for Ctrl-C. */

import { BioPool } from '../block/bio.ts';
import type { Reactor } from '../io/reactor.ts';
import { onInterrupt } from './interrupt.ts';

export interface IoContext {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  /** Aborted by SIGINT and SIGTERM. */
  readonly signal: AbortSignal;
}

/** Runs `work`, and closes the reactor after it, however it ends. */
export async function withReactor<T>(work: (context: IoContext) => Promise<T>): Promise<T> {
  const interrupt = onInterrupt();
  const { openReactor } = await import('../io/open.ts');
  const reactor = await openReactor({ cooperative: true });
  try {
    return await work({ reactor, pool: new BioPool(), signal: interrupt.signal });
  } finally {
    await reactor.close();
    interrupt.release();
  }
}
