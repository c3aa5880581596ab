/** The memory of a reactor: one anonymous mapping, its arena at the start and slabs behind it. */

import { GIB } from '../util/units.ts';
import { Arena } from './arena.ts';
import { SLAB_BYTES, SlabPool } from './slab-pool.ts';
import { discardMemory, enableMemory, mapAnonymous, unmap } from './sys.ts';

/** The largest ArrayBuffer. */
const MOST_BYTES = 4 * GIB;

export interface ReactorMemory {
  readonly arena: Arena;
  readonly slabs: SlabPool;
}

/** With up to `slabBytes` for slabs: fewer where no more can be addressed, none where the system refuses.
 *  Or -errno. */
export function mapMemory(arenaBytes: number, slabBytes: number, mostBytes = MOST_BYTES): ReactorMemory | number {
  const most = Math.min(slabBytes, mostBytes - arenaBytes);
  const large = most >= SLAB_BYTES ? mapAnonymous(arenaBytes + most, arenaBytes) : -1;
  const mapping = typeof large === 'number' ? mapAnonymous(arenaBytes) : large;
  if (typeof mapping === 'number') return mapping;
  const { address, memory } = mapping;
  const pages = {
    enable: (at: number, length: number) => enableMemory(address + at, length) === 0,
    discard: (at: number, length: number) => void discardMemory(address + at, length),
  };
  return {
    arena: new Arena(memory, address, { at: 0, length: arenaBytes }),
    slabs: new SlabPool(pages, arenaBytes, memory.byteLength, -address % SLAB_BYTES),
  };
}

export function unmapMemory({ address, bytes }: Arena): void {
  unmap(address, bytes.byteLength);
}
