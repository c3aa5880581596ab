/** The contract between the NBD server and what it serves. The server knows nothing of snapshots:
 *  whatever tells about blocks (a dirty bitmap, say) is a metadata context of its export. */

import type { BlockDevice } from '../block/device.ts';
import type { Peer } from './peer.ts';

/** What a metadata context says about a run of bytes. The flags' meaning is the context's own. */
export interface StatusExtent {
  readonly length: number;
  readonly flags: number;
}

export interface MetaContext {
  /** `namespace:leaf`, at most 4096 bytes. */
  readonly name: string;
  /** The status of [offset, offset + length), in order; at least the first byte, and may stop early.
   *  Slow path. A rejection is answered with EIO, or the error's own code. */
  blockStatus(offset: number, length: number): Promise<readonly StatusExtent[]>;
}

export interface NbdExport {
  readonly name: string;
  /** For people; may be empty. */
  readonly description: string;
  readonly device: BlockDevice;
  /** The contexts that fit: all that can be listed for ``, those of a namespace for `qemu:`, and the
   *  one of that name, listed or not, for anything else. `base:allocation` is the server's own. */
  contexts(query: string): readonly MetaContext[];
}

/** The exports by name. A client that names none asks for ``. Who takes an export out of the table
 *  calls the server's `dropExport` next. */
export interface ExportTable {
  find(name: string): NbdExport | undefined;
  /** Also those that are elsewhere. */
  list(): Iterable<Pick<NbdExport, 'name' | 'description'>>;
  /** Whether another server of the process has it: its clients are handed over. */
  isElsewhere?(name: string): boolean;
  /** The part that a client may see and use: what is not in it does not exist for that client. Without this, all of it. */
  visibleTo?(peer: Peer): ExportTable;
}
