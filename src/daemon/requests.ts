/** What the daemon is asked to do: the arguments of its operations. */

import type { Via } from '../kernel/provider.ts';

/** Whether there is to be a device in /dev. */
export interface DeviceRequest {
  /** Default: where people expect one and the kernel can, as docs/kernel.md says. */
  readonly kernelDevice?: boolean | undefined;
  /** Default: the best that the kernel has. */
  readonly via?: Via | undefined;
}

export interface AttachRequest extends DeviceRequest {
  readonly path: string;
  /** Default: the file's name without its extension. */
  readonly name?: string | undefined;
  readonly readOnly?: boolean | undefined;
  readonly direct?: boolean | undefined;
  /** It lives where mapped devices do, whatever the number of I/O threads. */
  readonly mappable?: boolean | undefined;
  /** A volume in use, also where a daemon that hangs would hang the machine. */
  readonly force?: boolean | undefined;
}

export interface MountRequest {
  readonly directory: string;
  readonly disk: string;
  /** Default: the newest. */
  readonly point?: string | undefined;
  /** Default: the disk's name and `-mount`. */
  readonly name?: string | undefined;
}

export interface SnapshotRequest extends DeviceRequest {
  readonly disks: readonly string[];
  /** Default: an unnamed file in the state directory. */
  readonly storage?: string | undefined;
  readonly limitBytes?: number | undefined;
  /** It is destroyed when nobody renews it for so long. Default: it stays. */
  readonly leaseMs?: number | undefined;
  /** Whether file systems mounted on the disks' kernel devices are frozen for the take. Default: they are. */
  readonly fsfreeze?: boolean | undefined;
  /** It outlives the daemon. */
  readonly persistent?: boolean | undefined;
  /** Commands to run before and after the take, both or none. */
  readonly hooks?:
    | {
        readonly freeze?: string | undefined;
        readonly thaw?: string | undefined;
        /** How long commands or file systems may keep it frozen. */
        readonly timeoutMs?: number | undefined;
      }
    | undefined;
}
