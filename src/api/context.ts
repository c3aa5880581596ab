/** What the API's handlers work with. */

import type { Daemon } from '../daemon/daemon.ts';
import type { Log } from '../daemon/log.ts';

export interface ApiContext {
  readonly daemon: Daemon;
  /** Aborted when the server ends: nothing waits any longer. */
  readonly ending: AbortSignal;
  readonly log: Log;
}
