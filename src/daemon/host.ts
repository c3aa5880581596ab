/** What the parts of a daemon have in common. */

import type { ClientRules } from './client-rules.ts';
import type { IoThreads } from './io-threads.ts';
import type { Log } from './log.ts';
import type { DaemonPaths } from './paths.ts';
import type { Serial } from './serial.ts';

export interface Host {
  readonly io: Pick<IoThreads, 'call' | 'ready'>;
  readonly paths: DaemonPaths;
  readonly log: Log;
  readonly rules: ClientRules;
  /** Keys: `disk NAME`, `path PATH`, `mapped NAME`, `clients`. */
  readonly serial: Serial;
  /** The NBD URI of an export. */
  uri(exportName: string): string;
}
