/** Metadata contexts of an export: its own, and base:allocation, which every device has. */

import type { BlockDevice } from '../block/device.ts';
import type { MetaContext, NbdExport, StatusExtent } from './export.ts';
import { BASE_ALLOCATION, STATE_HOLE, STATE_ZERO } from './protocol.ts';

/** A context that a client selected. */
export interface SelectedContext {
  readonly id: number;
  readonly context: MetaContext;
}

function allocationContext(device: BlockDevice): MetaContext {
  return {
    name: BASE_ALLOCATION,
    async blockStatus(offset, length): Promise<readonly StatusExtent[]> {
      const extents = await device.extents(offset, length);
      return extents.map((extent) => ({
        length: extent.length,
        flags: (extent.hole ? STATE_HOLE : 0) | (extent.zero ? STATE_ZERO : 0),
      }));
    },
  };
}

/** For LIST_META_CONTEXT. No query lists everything; unknown namespaces match nothing. */
export function listContexts(served: NbdExport, queries: readonly string[]): MetaContext[] {
  const found = new Map<string, MetaContext>();
  for (const query of queries.length === 0 ? [''] : queries) {
    if (query === '' || query === 'base:' || query === BASE_ALLOCATION) {
      found.set(BASE_ALLOCATION, allocationContext(served.device));
    }
    if (query.startsWith('base:')) continue;
    for (const context of served.contexts(query)) found.set(context.name, context);
  }
  return [...found.values()];
}

/** For SET_META_CONTEXT: exact names only, in the order asked for. */
export function selectContexts(served: NbdExport, queries: readonly string[]): SelectedContext[] {
  const contexts = [...new Set(queries)]
    .filter((query) => query !== '')
    .flatMap((query) => listContexts(served, [query]).filter((context) => context.name === query));
  return contexts.map((context, index) => ({ id: index + 1, context }));
}
