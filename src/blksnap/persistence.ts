/** What makes a snapshot outlive the process, in its order: a journal with the plan before the take; after it the frozen
 *  change maps, a note in the CBT map of each disk that it has all its copies, and the end of the take. At the end of the
 *  process it is laid down: storage, journal and names on stable storage, then the clean mark of the disk.
 *
 *  The note in the CBT map is the one that counts. It goes, by a store to memory, before a write passes that was not
 *  copied; so whatever becomes of the journal or the storage, no image comes back that is not whole. */

import path from 'node:path';
import { BlksnapError } from '../util/errors.ts';
import { syncDirectory } from '../util/directories.ts';
import { completed } from '../io/reactor.ts';
import type { Reactor } from '../io/reactor.ts';
import type { DiffArea } from './diff-area.ts';
import type { DiffStorage } from './diff-storage.ts';
import { Journal } from './journal.ts';
import type { PlaceNote, PlanNote } from './journal-format.ts';
import type { JournalPlace } from './journal-place.ts';
import type { Snapshot } from './snapshot.ts';
import type { StoragePiece } from './storage-piece.ts';
import type { Tracker } from './tracker.ts';

export interface PersistentOptions {
  /** Makes the file that the journal goes to. */
  readonly open: () => JournalPlace;
  /** JSON that the maker wants back with the snapshot. */
  readonly memo: PlanNote['memo'];
}

/** Errors: EOPNOTSUPP for a disk of which nobody could tell whether it was written meanwhile. */
export function refuseUnknowable(trackers: readonly Tracker[]): void {
  for (const { disk, cbt, below } of trackers) {
    const why = !cbt.kept.inFile
      ? 'its change history is in memory alone'
      : below !== disk.device
        ? 'a filter below redirects some of it'
        : null;
    if (why === null) continue;
    throw new BlksnapError(
      'EOPNOTSUPP',
      `Cannot take a persistent snapshot of disk "${disk.name}": ${why}, so nobody could tell later ` +
        'whether it is as it was; take one that ends with the daemon',
    );
  }
}

/** Errors: ENOMEM; what the file fails with. */
export async function planJournal(
  reactor: Reactor,
  { open, memo }: PersistentOptions,
  plan: {
    readonly id: string;
    readonly order: number;
    readonly trackers: readonly Tracker[];
    readonly storage: DiffStorage;
  },
): Promise<Journal> {
  const { id, order, trackers, storage } = plan;
  const disks = trackers.map(({ disk, cbt }) => ({ name: disk.name, size: disk.size, blockSize: cbt.blockSize }));
  const first = placeNote(storage.pieces[0]!);
  const place = open();
  let journal: Journal | null = null;
  try {
    journal = new Journal(reactor, place, { frames: 0, offset: 0 });
    await journal.note({ plan: { version: 1, id, order, plannedAt: Date.now(), disks, place: first, memo } });
    return journal;
  } catch (cause) {
    if (journal === null) place.close();
    else await journal.close();
    place.remove();
    throw cause;
  }
}

/** Errors: EINVAL for memory, which ends with the process. */
export function placeNote({ path: file, kind, owned, limitBytes }: StoragePiece): PlaceNote {
  if (kind === 'memory')
    throw new BlksnapError('EINVAL', `Cannot keep a persistent snapshot in "${file}": it is in memory; name a file`);
  return { path: file, kind, owned, limitBytes: Number.isFinite(limitBytes) ? limitBytes : null };
}

/** The take is over. From the end of this on the snapshot outlives the process. Errors: EBUSY without a free slot in
 *  a CBT map; what the journal fails with. */
export async function completeJournal(
  { id, createdAt, images }: Snapshot,
  journal: Journal,
  heldMs: number,
): Promise<void> {
  for (const [disk, { area }] of images.entries()) await journal.map(disk, area.frozenMap);
  for (const { area, tracker } of images) {
    if (!area.active || tracker.cbt.kept.keep(id, journal.frames)) continue;
    throw new BlksnapError(
      'EBUSY',
      `Cannot keep a persistent snapshot of disk "${tracker.disk.name}": its change map has no room for another; destroy one first`,
    );
  }
  const disks = images.map(({ generationId, changeNumber }) => ({ generationId, changeNumber }));
  await journal.note({ taken: { createdAt, heldMs, disks } });
}

/** Lays an area down for the next process, when all that was under way is over. Whether it is all on stable storage. */
export async function layDown(reactor: Reactor, area: DiffArea): Promise<boolean> {
  while (area.busy) await completed((c) => void reactor.timer(1, c));
  const { journal, storage } = area;
  if (!area.active || journal === null) return false;
  if ((await storage.sync()) !== 0 || (await journal.journal.sync()) !== 0) return false;
  try {
    journal.journal.place.syncName();
    for (const piece of storage.pieces) if (piece.owned) syncDirectory(path.dirname(piece.path));
    return true;
  } catch {
    return false; // The caller takes it for lost: the names may not be there after the machine's end.
  }
}
