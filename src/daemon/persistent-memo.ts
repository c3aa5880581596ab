/** What the daemon wants back with a persistent snapshot, as each journal of it remembers it: what was asked for, and,
 *  where its disks lived on several I/O threads, the whole that this journal is a part of. */

import { z } from 'zod';
import type { FoundJournal } from './journals.ts';

/** A snapshot as it was asked for. Each part of it, on a thread, is to the core a snapshot with an id of its own. */
const wholeSchema = z.strictObject({
  id: z.uuid(),
  disks: z.array(z.string().min(1).max(512)).max(1024),
  /** The ids of all parts. */
  parts: z.array(z.uuid()).min(1).max(1024),
});

export const memoSchema = z.strictObject({
  origins: z
    .array(
      z.strictObject({
        name: z.string().min(1).max(512),
        disk: z.string(),
        range: z.strictObject({ offset: z.int().nonnegative(), length: z.int().positive() }).nullable(),
      }),
    )
    .max(1024),
  /** Absent where the journal is that of a whole snapshot. */
  whole: wholeSchema.optional(),
});

export type Whole = z.infer<typeof wholeSchema>;

/** A persistent snapshot that was found when the daemon started: its journals. */
export interface FoundSnapshot {
  readonly whole: Whole;
  readonly journals: readonly FoundJournal[];
}

/** A journal that cannot be read stands for itself. */
export function wholeOf({ id, plan }: FoundJournal): Whole {
  const memo = memoSchema.safeParse(plan?.memo);
  return memo.data?.whole ?? { id, disks: memo.data?.origins.map(({ name }) => name) ?? [], parts: [id] };
}

export function foundSnapshots(journals: readonly FoundJournal[]): FoundSnapshot[] {
  const wholes = new Map(journals.map(wholeOf).map((whole) => [whole.id, whole]));
  return [...wholes.values()].map((whole) => ({
    whole,
    journals: journals.filter((journal) => wholeOf(journal).id === whole.id),
  }));
}
