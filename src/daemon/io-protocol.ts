/** What the control thread and an I/O thread say to each other. Types alone.
 *
 *  control -> I/O: `Call`, and 8 bytes to the reactor's wake descriptor. I/O -> control: `Report`.
 *  Everything passed is plain data (structured clone). */

import type { ByteRange } from '../backup/ranges.ts';
import type { CopyCounters } from '../blksnap/copy-counters.ts';
import type { SnapshotEvent } from '../blksnap/events.ts';
import type { Origin } from '../blksnap/origin-guard.ts';
import type { Parameters } from '../blksnap/parameters.ts';
import type { DriverName } from '../io/open.ts';
import type { SocketAddress } from '../io/reactor.ts';
import type { ServedSocket } from '../kernel/nbd.ts';
import type { HandedOver, Visitor } from '../nbd/server.ts';
import type { QueueShape, ServedExport } from '../kernel/ublk-protocol.ts';
import type { ErrorCode } from '../util/errors.ts';
import type { AccessRules } from './access.ts';
import type { Whole } from './persistent-memo.ts';
import type { KeptFilter } from './state.ts';

export interface IoThreadOptions {
  /** Forces a driver; null takes the best that works. */
  readonly driver: DriverName | null;
  readonly parameters: Parameters;
  /** URLs of modules that register filters. */
  readonly filterModules: readonly string[];
}

/** What the I/O thread found when it started. */
export interface IoThreadReady {
  readonly driver: string;
  /** Why the driver is not `uring`, where it is not. */
  readonly driverReason: string;
  /** The descriptor that wakes the reactor, or -1. */
  readonly wakeFd: number;
}

/** Who comes to a listening address: the owner alone; anybody, without a name; users of this machine. */
export type ClientsFrom = 'owner' | 'nameless' | 'users';

export interface OpenOptions {
  readonly path: string;
  readonly readOnly: boolean;
  readonly direct: boolean;
}

export interface CbtInfo {
  /** Bytes of the disk and of one tracking block. */
  readonly size: number;
  readonly blockSize: number;
  readonly blockCount: number;
  readonly generationId: string;
  /** The number that changes are marked with now. */
  readonly changeNumber: number;
  /** Why the generation began; '' when history went on from before. */
  readonly reason: string;
}

/** A filter that somebody attached to a disk. */
export interface AttachedFilter {
  readonly name: string;
  /** As it was given to the filter's factory: JSON. */
  readonly options: unknown;
}

export interface PartitionInfo {
  readonly disk: string;
  readonly number: number;
  /** Bytes from the disk's start. */
  readonly offset: number;
  /** GPT's type UUID, or the MBR type as `0x83`. */
  readonly type: string;
  readonly label: string;
}

export interface PartitionTableInfo {
  /** Null where there is none. */
  readonly scheme: 'gpt' | 'mbr' | null;
  readonly warnings: readonly string[];
}

/** A served disk, as the I/O thread sees it. */
export interface DiskInfo {
  readonly name: string;
  readonly size: number;
  readonly logicalBlockSize: number;
  readonly physicalBlockSize: number;
  readonly readOnly: boolean;
  /** The filters on it, highest first. */
  readonly filters: readonly string[];
  readonly inFlight: number;
  readonly cbt: CbtInfo;
  /** Null for a partition: its disk counts. */
  readonly copies: CopyCounters | null;
  /** Of a partition: where it lies; null for a whole disk. */
  readonly partition: PartitionInfo | null;
  /** Of a whole disk: its partition table; null for a partition. */
  readonly partitionTable: PartitionTableInfo | null;
}

export interface ImageInfo {
  /** The origin's name. */
  readonly disk: string;
  /** The image's NBD export. */
  readonly exportName: string;
  readonly size: number;
  readonly generationId: string;
  /** The snapshot's own number in that history. */
  readonly changeNumber: number;
  /** Null, or why the image is lost. */
  readonly error: ErrorCode | null;
}

export interface SnapshotInfo {
  readonly id: string;
  /** Milliseconds since 1970. */
  readonly createdAt: number;
  /** How long writes were held at the take, ms. */
  readonly heldMs: number;
  /** Where saved chunks are kept. */
  readonly storagePath: string;
  /** All places, in the order in which they are filled. */
  readonly places: ReadonlyArray<{ readonly path: string; readonly limitBytes: number | null }>;
  readonly usedBytes: number;
  /** Null: no limit but the place itself. */
  readonly limitBytes: number | null;
  /** It outlives the daemon. */
  readonly persistent: boolean;
  readonly images: readonly ImageInfo[];
}

export interface MappedInfo {
  readonly name: string;
  readonly size: number;
  readonly suspended: boolean;
  /** Bios under way below it. */
  readonly inFlight: number;
  /** Lines as dmsetup prints them: of the live table, of the inactive one (none: empty), and the status. */
  readonly table: string[];
  readonly inactiveTable: string[];
  readonly status: string[];
}

/** A range of a disk that lies on a mapped device. Bytes. */
export interface RemapInfo {
  readonly disk: string;
  readonly offset: number;
  readonly length: number;
  readonly to: string;
  readonly at: number;
}

/** How making something that was remembered went: a mapped device, or a redirected range of disk `name`. */
export interface RestoredMapping {
  readonly kind: 'device' | 'remap';
  readonly name: string;
  readonly error: ErrorReport | null;
}

/** An export came, or with null went. */
export interface ExportChange {
  readonly name: string;
  readonly description: string | null;
}

/** A take, or what one I/O thread has of it. */
export interface TakeArgs {
  readonly disks: readonly string[];
  readonly storagePath: string;
  readonly limitBytes: number | null;
}

/** Every call: its argument and its result. */
export interface IoCalls {
  /** Takes NBD connections. The result has the port that the system chose for port 0. */
  listen: { args: { readonly address: SocketAddress; readonly clients: ClientsFrom }; result: SocketAddress };
  /** Says who may use which disks. Ends the connections of those who may no longer. */
  setAccess: { args: { readonly rules: AccessRules }; result: void };
  /** Opens a file or device and serves it. With `cbtPath` its changes are tracked, in that file. */
  attach: {
    args: OpenOptions & {
      readonly name: string;
      readonly cbtPath: string | null;
      /** Attached before the disk, or its partition, is served. */
      readonly filters: readonly KeptFilter[];
      /** To be on the first I/O thread, with the mapped devices. */
      readonly mappable?: boolean;
      /** Nobody else writes to the device, for as long as it exists. */
      readonly originPrivate?: boolean;
    };
    result: DiskInfo;
  };
  /** Serves a restore point as a writable disk; what is written goes with it. */
  mount: {
    args: {
      readonly name: string;
      readonly directory: string;
      readonly disk: string;
      readonly point: string | null;
      /** Where what is written is kept, in an unnamed file. */
      readonly overlayDirectory: string;
    };
    result: DiskInfo & { readonly point: string };
  };
  /** `force`: also while clients are connected. */
  detach: { args: { readonly name: string; readonly force?: boolean | undefined }; result: void };
  /** Whether a detach would be refused. */
  checkDetach: { args: { readonly name: string; readonly force?: boolean | undefined }; result: void };
  /** Writes have passed the disk by: its images are lost, its history begins anew. */
  doubt: { args: { readonly name: string; readonly reason: string }; result: void };
  disks: { args: Record<never, never>; result: DiskInfo[] };
  /** Takes over the size that the file or device has now. */
  resize: { args: { readonly name: string }; result: DiskInfo };
  /** Reads a disk's partition table anew; new partitions get their filters. The disk and its partitions. */
  rescan: { args: { readonly name: string; readonly filters: readonly KeptFilter[] }; result: DiskInfo[] };
  /** The kinds of filters that are known, and the disks that have each. */
  filters: { args: Record<never, never>; result: Array<{ readonly name: string; readonly disks: string[] }> };
  filterAttach: { args: { readonly disk: string } & AttachedFilter; result: DiskInfo };
  filterDetach: { args: { readonly disk: string; readonly name: string }; result: void };
  filterCtl: {
    args: { readonly disk: string; readonly name: string; readonly command: string; readonly payload: unknown };
    result: unknown;
  };
  /** Makes the mapped devices that the file remembers, each with its filters, and keeps it up to date from then on. */
  dmRestore: {
    args: { readonly stateFile: string; readonly filters: ReadonlyMap<string, readonly KeptFilter[]> };
    result: RestoredMapping[];
  };
  dmCreate: {
    args: { readonly name: string; readonly table: string; readonly filters: readonly KeptFilter[] };
    result: void;
  };
  dmLoad: { args: { readonly name: string; readonly table: string; readonly sameData: boolean }; result: void };
  dmSuspend: { args: { readonly name: string }; result: void };
  dmResume: { args: { readonly name: string }; result: void };
  dmMessage: { args: { readonly name: string; readonly sector: number; readonly text: string }; result: string };
  /** Forgets one that could not be made. */
  dmForget: { args: { readonly name: string }; result: void };
  dmRemap: { args: RemapInfo & { readonly copy: boolean }; result: void };
  dmUnmap: { args: { readonly disk: string; readonly offset: number; readonly copy: boolean }; result: void };
  dmList: { args: Record<never, never>; result: { devices: MappedInfo[]; remaps: RemapInfo[] } };
  cbtMap: { args: { readonly name: string; readonly offset: number; readonly length: number }; result: Uint8Array };
  cbtMarkDirty: { args: { readonly name: string; readonly ranges: readonly ByteRange[] }; result: void };
  createSnapshot: {
    args: {
      /** The id that was given out when the snapshot was prepared; a new one when absent. */
      readonly id?: string | undefined;
      /** Of a persistent snapshot: where its journal goes. */
      readonly journalPath?: string | undefined;
    } & TakeArgs;
    result: SnapshotInfo;
  };
  /** Brings a persistent snapshot back, or a part of one. Null: its take had not come to its end, and it is removed. */
  restoreSnapshot: {
    args: {
      readonly id: string;
      readonly journalPath: string;
      readonly disks: readonly string[];
      readonly whole: Whole;
    };
    result: SnapshotInfo | null;
  };
  /** Lets what was brought back of a snapshot go again, for another start to bring it back. */
  letGoSnapshot: { args: { readonly id: string }; result: void };
  /** Removes a persistent snapshot that could not be brought back. */
  discardSnapshot: { args: { readonly journalPath: string }; result: void };
  /** Whatever the disks' data lies on now. */
  origins: { args: { readonly disks: readonly string[] }; result: Origin[] };
  /** A take over several threads, in its steps (src/blksnap/take.ts). */
  planSnapshot: {
    args: {
      readonly id: string;
      /** Of a persistent snapshot: where the journal of this part goes, and the whole, by whose id it is shown. */
      readonly kept?: { readonly journalPath: string; readonly whole: Whole } | undefined;
    } & TakeArgs;
    result: void;
  };
  freezeSnapshot: { args: { readonly id: string }; result: void };
  switchSnapshot: { args: { readonly id: string }; result: void };
  /** Thaws, and offers the images. */
  finishSnapshot: { args: { readonly id: string; readonly createdAt: number }; result: SnapshotInfo };
  /** Of a persistent snapshot: from here on it outlives the process. */
  completeSnapshot: { args: { readonly id: string; readonly heldMs: number }; result: void };
  /** Undoes all steps; nothing when there were none. */
  abandonSnapshot: { args: { readonly id: string }; result: void };
  /** An export of another thread came or went. */
  elsewhere: { args: ExportChange; result: void };
  /** Serves a client that another thread has accepted. Its descriptor is this thread's from here on. */
  takeOver: { args: Visitor; result: void };
  /** Serves an export on a connected socket whose other end the kernel gets. The descriptor is this thread's. */
  serveKernel: { args: { readonly exportName: string; readonly fd: number }; result: ServedSocket };
  describeExport: { args: { readonly exportName: string }; result: ServedSocket };
  /** Serves the requests of a ublk device, as the export is. */
  serveUblk: { args: { readonly exportName: string } & QueueShape; result: ServedExport };
  /** Ends when the device's requests are not served any more, which stopping it brings about. */
  ublkEnded: { args: { readonly id: number }; result: void };
  describeDevice: { args: { readonly exportName: string }; result: ServedExport };
  /** This thread is in the way of the machine's own writes from here on. */
  guardWritePath: { args: Record<never, never>; result: void };
  /** Gives a held snapshot more room: another place, or with null a higher limit in all. */
  appendStorage: {
    args: {
      readonly id: string;
      readonly storagePath: string | null;
      readonly limitBytes: number | null;
      /** Origins of the same snapshot on other threads: the first part refuses a place on any, before there is anything to undo. */
      readonly others?: readonly Origin[];
    };
    result: SnapshotInfo;
  };
  snapshots: { args: Record<never, never>; result: SnapshotInfo[] };
  destroySnapshot: { args: { readonly id: string }; result: void };
  /** Takes no more connections, ends those there are, closes every disk. */
  stop: { args: Record<never, never>; result: void };
}

export type IoCallName = keyof IoCalls;

/** The calls as the I/O thread implements them. */
export type IoHandlers = { [Name in IoCallName]: (args: IoCalls[Name]['args']) => Promise<IoCalls[Name]['result']> };

export interface Call {
  readonly id: number;
  readonly name: IoCallName;
  readonly args: unknown;
}

export type Report =
  | { readonly kind: 'ready'; readonly ready: IoThreadReady }
  | { readonly kind: 'failed'; readonly error: ErrorReport }
  | { readonly kind: 'result'; readonly id: number; readonly result: unknown }
  | { readonly kind: 'error'; readonly id: number; readonly error: ErrorReport }
  | { readonly kind: 'event'; readonly event: SnapshotEvent }
  | { readonly kind: 'exportChange'; readonly change: ExportChange }
  | { readonly kind: 'handOver'; readonly client: HandedOver }
  /** The kernel's connection to an export has ended. */
  | { readonly kind: 'kernelLeft'; readonly exportName: string };

export interface ErrorReport {
  readonly code: ErrorCode;
  readonly message: string;
}
