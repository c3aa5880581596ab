/** The journals of persistent snapshots that a daemon finds when it starts: which there are, of which disks, in which
 *  order they are to be brought back. Reads their plans alone; whether they can be believed is decided later. */

import fs from 'node:fs';
import path from 'node:path';
import { FRAME_HEADER, KIND_NOTE, MAX_PAYLOAD, frameBytes, openFrame, parseNote } from '../blksnap/journal-format.ts';
import type { PlanNote } from '../blksnap/journal-format.ts';
import { JOURNAL_SUFFIX } from '../blksnap/journal-place.ts';

export interface FoundJournal {
  readonly id: string;
  readonly path: string;
  /** Null: it cannot be read. */
  readonly plan: PlanNote | null;
}

/** In the order of their takes. */
export function findJournals(directory: string): FoundJournal[] {
  const names = fs.existsSync(directory) ? fs.readdirSync(directory) : [];
  return names
    .filter((name) => name.endsWith(JOURNAL_SUFFIX))
    .map((name) => {
      const file = path.join(directory, name);
      const id = name.slice(0, -JOURNAL_SUFFIX.length);
      const plan = readPlan(file);
      return { id, path: file, plan: plan?.id === id ? plan : null };
    })
    .toSorted((a, b) => (a.plan?.order ?? Infinity) - (b.plan?.order ?? Infinity));
}

function readPlan(file: string): PlanNote | null {
  const memory = new DataView(new ArrayBuffer(FRAME_HEADER + MAX_PAYLOAD));
  let got: number;
  try {
    const fd = fs.openSync(file, 'r');
    try {
      got = fs.readSync(fd, memory, 0, memory.byteLength, 0);
    } finally {
      fs.closeSync(fd);
    }
  } catch {
    return null; // Reported as a snapshot that cannot be brought back.
  }
  const length = got < FRAME_HEADER ? 0 : frameBytes(memory, 0, 1);
  const frame = length === 0 || length > got ? null : openFrame(memory, 0, length);
  const note = frame?.kind === KIND_NOTE ? parseNote(frame.payload) : null;
  return note !== null && 'plan' in note ? note.plan : null;
}

/** Disks that must live on one I/O thread: those of each snapshot, and of all that share a disk with it. */
export function disksTogether(journals: readonly FoundJournal[]): string[][] {
  let groups: string[][] = [];
  for (const { plan } of journals) {
    const names = (plan?.disks ?? []).map(({ name }) => name);
    const shared = groups.filter((group) => group.some((name) => names.includes(name)));
    groups = [...groups.filter((group) => !shared.includes(group)), [...new Set([...names, ...shared.flat()])]];
  }
  return groups;
}
