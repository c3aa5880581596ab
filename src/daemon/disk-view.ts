/** What the daemon tells of a disk: put together from what is remembered and what the I/O thread has. */

import type { BlksnapError } from '../util/errors.ts';
import { wholeDisk } from './disk-names.ts';
import type { DiskInfo } from './io-protocol.ts';
import { isLive } from './live-disks.ts';
import type { DiskState, KeptFilter } from './state.ts';
import type { DiskView, KernelDeviceView } from './views.ts';

/** A disk that is to be served, and why it is not, where it is not. */
export type Entry =
  | { readonly kind: 'disk'; state: DiskState; failure: BlksnapError | null }
  | { readonly kind: 'mount'; readonly directory: string; readonly point: string; filters: readonly KeptFilter[] }
  /** Remembered by the I/O thread. */
  | { readonly kind: 'mapped'; readonly failure: BlksnapError | null; filters: readonly KeptFilter[] };

export interface DiskParts {
  /** What the I/O thread tells; undefined for a disk that is not served. */
  readonly info: DiskInfo | undefined;
  readonly uri: string;
  /** Of the whole disk. */
  readonly kernelDevice: KernelDeviceView | null;
}

/** Of a disk or a partition. */
export function diskView(name: string, entry: Entry, { info, uri, kernelDevice }: DiskParts): DiskView {
  const failure = failureOf(entry);
  return {
    name,
    kind: name === wholeDisk(name) ? entry.kind : 'partition',
    path: pathOf(name, entry),
    point: entry.kind === 'mount' ? entry.point : null,
    state: failure === null ? 'attached' : 'failed',
    failure: failure === null ? null : { code: failure.code, message: failure.message },
    uri,
    size: info?.size ?? 0,
    logicalBlockSize: info?.logicalBlockSize ?? 0,
    physicalBlockSize: info?.physicalBlockSize ?? 0,
    readOnly: info?.readOnly ?? (entry.kind === 'disk' && entry.state.readOnly),
    direct: entry.kind === 'disk' && entry.state.direct,
    live: entry.kind === 'disk' && isLive(entry.state),
    filters: [...(info?.filters ?? [])],
    inFlight: info?.inFlight ?? 0,
    cbt: info?.cbt ?? null,
    copies: info?.copies ?? null,
    partition: info?.partition ?? null,
    partitionTable: tableView(info),
    kernelDevice: ofPartition(kernelDevice, info),
  };
}

function ofPartition(view: KernelDeviceView | null, info: DiskInfo | undefined): KernelDeviceView | null {
  const number = info?.partition?.number;
  if (view === null || view.path === null || number === undefined) return view;
  return { ...view, path: `${view.path}p${number}` };
}

/** Why a disk is not served; null where it is. */
export function failureOf(entry: Entry): BlksnapError | null {
  return entry.kind === 'mount' ? null : entry.failure;
}

function pathOf(name: string, entry: Entry): string {
  switch (entry.kind) {
    case 'disk':
      return entry.state.path;
    case 'mount':
      return entry.directory;
    case 'mapped':
      return `dm:${wholeDisk(name)}`;
  }
}

function tableView(info: DiskInfo | undefined): DiskView['partitionTable'] {
  const { scheme = null, warnings = [] } = info?.partitionTable ?? {};
  return scheme === null ? null : { scheme, warnings: [...warnings] };
}
