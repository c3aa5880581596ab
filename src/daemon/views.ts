/** What the daemon tells of itself: the shapes that the API hands out. Plain data; sizes and offsets are bytes. */

import type { CopyCounters } from '../blksnap/copy-counters.ts';
import type { Parameters } from '../blksnap/parameters.ts';
import type { Via } from '../kernel/provider.ts';
import type { ErrorCode } from '../util/errors.ts';

export interface StatusView {
  version: string;
  pid: number;
  startedAt: string;
  /** Directories of sockets and of state. */
  runDirectory: string;
  stateDirectory: string;
  /** The reactor's driver, and why it is not `uring` where it is not. */
  driver: string;
  driverReason: string;
  ioThreads: number;
  /** Where NBD clients connect, without an export name. */
  nbdUri: string;
  parameters: Parameters;
  /** Of all disks together, since they were attached. */
  copies: CopyCounters;
  disks: number;
  failedDisks: number;
  snapshots: number;
  /** Disks and images that have a device in /dev. */
  kernelDevices: number;
  /** Persistent ones that could not be brought back. */
  refusedSnapshots: number;
}

export interface FailureView {
  code: ErrorCode;
  message: string;
}

export interface CbtView {
  size: number;
  blockSize: number;
  blockCount: number;
  generationId: string;
  changeNumber: number;
  reason: string;
}

/** A node in /dev that shows a disk or an image. */
export interface KernelDeviceView {
  /** Null while it is down. */
  path: string | null;
  via: Via;
  /** Why it is down. */
  failure: FailureView | null;
}

export interface DiskView {
  name: string;
  /** `disk`: a file or device, attached again at every start. `mount`: a restore point, until the daemon ends.
   *  `partition`: of one of them. `mapped`: made of others by a table, again at every start. */
  kind: 'disk' | 'mount' | 'partition' | 'mapped';
  path: string;
  /** The restore point of a mount; null for a disk. */
  point: string | null;
  state: 'attached' | 'failed';
  /** Why a disk is not served though it should be. */
  failure: FailureView | null;
  uri: string;
  /** 0 while failed. */
  size: number;
  logicalBlockSize: number;
  physicalBlockSize: number;
  readOnly: boolean;
  direct: boolean;
  /** A device-mapper volume that others use while it is attached. */
  live: boolean;
  filters: string[];
  inFlight: number;
  /** Null while failed. */
  cbt: CbtView | null;
  /** What copy-on-write has done since the disk was attached; null while failed, and for partitions. */
  copies: CopyCounters | null;
  /** Of a partition: its disk, and where it lies there. */
  partition: { disk: string; number: number; offset: number; type: string; label: string } | null;
  /** Of a disk that has one: what was read at the attach, or the last rescan. */
  partitionTable: { scheme: 'gpt' | 'mbr'; warnings: string[] } | null;
  /** Of a partition: its own node. Null where there is none. */
  kernelDevice: KernelDeviceView | null;
}

/** A mapped device; lines are as dmsetup prints them. */
export interface MappedView {
  name: string;
  size: number;
  suspended: boolean;
  inFlight: number;
  table: string[];
  /** Empty: there is none. */
  inactiveTable: string[];
  status: string[];
}

export interface MappedDevicesView {
  devices: MappedView[];
  /** Ranges of disks that lie on mapped devices. */
  remaps: Array<{ disk: string; offset: number; length: number; to: string; at: number }>;
}

/** A kind of filter, and the disks that have one. */
export interface FilterView {
  name: string;
  disks: string[];
}

export interface ImageView {
  disk: string;
  uri: string;
  /** For a reader that reads everything once, and says by discards what it is done with: docs/discard.md. */
  readOnceUri: string;
  exportName: string;
  size: number;
  generationId: string;
  changeNumber: number;
  /** Null, or why the image is lost. */
  error: ErrorCode | null;
  kernelDevice: KernelDeviceView | null;
}

export interface SnapshotView {
  id: string;
  createdAt: string;
  /** How long writes were held at the take. */
  heldMs: number;
  /** How freezing file systems and the freeze hooks went; null without either. */
  freeze: { frozenMs: number; thawError: string | null } | null;
  storagePath: string;
  /** All places, in the order in which they are filled. */
  places: Array<{ path: string; limitBytes: number | null }>;
  usedBytes: number;
  /** Null: no limit but the place itself. */
  limitBytes: number | null;
  /** It goes when nobody renews it for so long; null: it stays. */
  leaseMs: number | null;
  /** It outlives the daemon. */
  persistent: boolean;
  /** Why a persistent one could not be brought back: it has no images then. */
  failure: FailureView | null;
  images: ImageView[];
}

/** A snapshot that was asked for in steps, and is not taken yet. */
export interface PreparedView {
  id: string;
  createdAt: string;
  disks: string[];
  storagePath: string;
  limitBytes: number | null;
}

export interface EventView {
  /** Counts up from 1 within a snapshot. */
  sequence: number;
  time: string;
  snapshotId: string;
  disk: string | null;
  code: 'lowSpace' | 'noSpace' | 'corrupted';
  error: ErrorCode | null;
  /** For `noSpace`, what the copy asked for; for `lowSpace`, the portion that is wanted; else null. */
  requestedBytes: number | null;
  usedBytes: number;
  limitBytes: number | null;
}
