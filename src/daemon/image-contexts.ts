/** What a snapshot image tells NBD clients about changes: for each earlier snapshot N of the same
 *  history a context `blksnap:changed:<generation id>:<N>`, and the same under the name that
 *  clients of QEMU know, `qemu:dirty-bitmap:since-<N>`. Bit 0 is set where a block may have
 *  changed between that snapshot and this one.
 *
 *  Only the one before is listed, so that a list stays short; the others are there by their names. */

import type { MetaContext } from '../nbd/export.ts';
import { GIB } from '../util/units.ts';

/** What is known of the changes before an image: a SnapshotImage, or a part of one. */
export interface ImageHistory {
  readonly generationId: string;
  /** The snapshot's own number. */
  readonly changeNumber: number;
  changedSince(number: number, offset: number, length: number): ReadonlyArray<{ length: number; changed: boolean }>;
}

const CHANGED = 1;
/** Of one answer: a bound on the time that it takes, and on its length. */
const ANSWER_BYTES = 4 * GIB;
const QEMU_PREFIX = 'qemu:dirty-bitmap:since-';

/** As NbdExport.contexts asks for. */
export function imageContexts(image: ImageHistory, query: string): readonly MetaContext[] {
  const ownPrefix = `blksnap:changed:${image.generationId}:`;
  const previous = image.changeNumber - 1;
  const listed = previous < 1 ? [] : [ownPrefix, QEMU_PREFIX].map((prefix) => context(image, prefix, previous));
  if (query === '') return listed;
  if (query.endsWith(':')) return listed.filter(({ name }) => name.startsWith(query));
  for (const prefix of [ownPrefix, QEMU_PREFIX]) {
    const number = query.startsWith(prefix) ? query.slice(prefix.length) : '';
    const known = /^[1-9]\d{0,2}$/.test(number) && Number(number) <= previous;
    if (known) return [context(image, prefix, Number(number))];
  }
  return [];
}

function context(image: ImageHistory, prefix: string, number: number): MetaContext {
  return {
    name: `${prefix}${number}`,
    blockStatus: async (offset, length) =>
      image
        .changedSince(number, offset, Math.min(length, ANSWER_BYTES))
        .map((run) => ({ length: run.length, flags: run.changed ? CHANGED : 0 })),
  };
}
