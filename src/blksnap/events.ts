/** What may happen to a snapshot while it is held. */

import type { ErrorCode } from '../util/errors.ts';

export interface SnapshotEvent {
  /** Milliseconds since 1970. */
  readonly time: number;
  readonly snapshotId: string;
  /** The origin concerned; null where the event is about the storage of all of them. */
  readonly disk: string | null;
  /** `lowSpace`: the storage will soon be full. `noSpace`: it is. `corrupted`: the disk's image is lost. */
  readonly code: 'lowSpace' | 'noSpace' | 'corrupted';
  /** Why, for `corrupted`. */
  readonly error: ErrorCode | null;
  /** For `noSpace`, what the copy asked for; for `lowSpace`, the portion that is wanted; else null. */
  readonly requestedBytes: number | null;
  readonly usedBytes: number;
  readonly limitBytes: number;
}
