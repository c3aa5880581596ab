/** How much of a snapshot's storage is reserved at a time: the parameter, but never more than its disks together hold,
 *  which no copies of them exceed. */

import { MIB } from '../util/units.ts';
import { CHUNK } from './chunk-table.ts';

const SMALLEST = 1 * MIB;

export function portionFor(disks: ReadonlyArray<{ readonly size: number }>, portionBytes: number): number {
  const held = disks.reduce((sum, { size }) => sum + Math.ceil(size / CHUNK) * CHUNK, 0);
  return Math.min(portionBytes, Math.max(SMALLEST, held));
}
