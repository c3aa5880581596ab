/** The filters that a disk comes back with, and those of its partitions: remembered on the control side, whatever kind
 *  of disk it is. A mount forgets them when it goes, as it does everything. */

import type { Entry } from './disk-view.ts';
import { wholeDisk } from './disk-names.ts';
import type { AttachedFilter } from './io-protocol.ts';
import type { KeptFilter } from './state.ts';

export function keptFilters(entry: Entry): readonly KeptFilter[] {
  return entry.kind === 'disk' ? entry.state.filters : entry.filters;
}

export function keepFilters(entry: Entry, filters: readonly KeptFilter[]): void {
  if (entry.kind === 'disk') entry.state = { ...entry.state, filters: [...filters] };
  else entry.filters = filters;
}

/** As it is kept for a disk or partition of that name. */
export function asKept(name: string, { name: filter, options }: AttachedFilter): KeptFilter {
  return { name: filter, options: options as KeptFilter['options'], partition: partitionNumber(name) };
}

export function isKeptOf(name: string, filter: string): (kept: KeptFilter) => boolean {
  const partition = partitionNumber(name);
  return (kept) => kept.name === filter && kept.partition === partition;
}

/** Null for a whole disk. */
function partitionNumber(name: string): number | null {
  const disk = wholeDisk(name);
  return disk === name ? null : Number(name.slice(disk.length + 1));
}
