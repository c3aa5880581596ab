/** What a backup reads from: one frozen disk, and what is known of its changes.
 *  Knows nothing of how the disk was frozen, or of what serves it. */

import type { BlockDevice } from '../block/device.ts';
import type { ByteRange } from './ranges.ts';

export interface BackupSource {
  /** The disk's name, and what tells it from another of that name (null: unknown). */
  readonly disk: string;
  readonly identity: string | null;
  /** The frozen content. Its reads fail, rather than lie, when the snapshot is lost. */
  readonly device: BlockDevice;
  /** The change history, and this snapshot's number in it; null when none is kept. */
  readonly generationId: string | null;
  readonly changeNumber: number | null;
  /** Every range that may differ from what it was at the snapshot of that number of this history, or null
   *  when that cannot be told. MUST leave nothing out: whatever is in doubt has changed. */
  changedSince(changeNumber: number): Promise<ByteRange[] | null>;
  /** Hears that a range will not be read (again). A hint: never rejects. */
  readonly done?: ((range: ByteRange) => Promise<void>) | undefined;
}
