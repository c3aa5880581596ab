/** Brings a persistent snapshot back from its journal: all of it or nothing, before anything is written to its disks.
 *
 *  It comes back when each disk's change map tells that it is the same disk, that nobody else has written to it, and that
 *  every write since the take had its copy; and when the journal has as many whole frames as were written, and the
 *  storage is the one that it was. */

import { NO_MEMORY } from '../io/arena.ts';
import { readWhole } from '../io/files.ts';
import type { Reactor } from '../io/reactor.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { CHUNK, FIRST_POSITION, UNSAVED, ZERO } from './chunk-table.ts';
import type { ChunkIndex } from './chunk-table.ts';
import { DiffArea } from './diff-area.ts';
import { DiffStorage } from './diff-storage.ts';
import type { StorageListener } from './diff-storage.ts';
import { Journal } from './journal.ts';
import { ROW_STORED } from './journal-format.ts';
import type { PlaceNote, Row } from './journal-format.ts';
import type { JournalPlace } from './journal-place.ts';
import { eachRow, readJournal } from './journal-reader.ts';
import type { JournalContent } from './journal-reader.ts';
import { refuseOwnStorage } from './origin-guard.ts';
import { checkLabel } from './storage-label.ts';
import { StoragePiece } from './storage-piece.ts';
import { reopenStoragePlace } from './storage-place.ts';
import type { StoragePlace } from './storage-place.ts';
import { portionFor } from './storage-portion.ts';
import type { Tracker } from './tracker.ts';

export interface RestoreOptions {
  readonly place: JournalPlace;
  /** The tracker of a disk. Errors: whatever keeps it from being there. */
  readonly tracker: (disk: string) => Tracker;
  /** Opens a place of storage; default: what its path names. */
  readonly reopen?: (place: PlaceNote) => StoragePlace;
}

export interface Restored {
  readonly content: JournalContent;
  readonly journal: Journal;
  readonly storage: DiffStorage;
  readonly disks: ReadonlyArray<{ readonly tracker: Tracker; readonly area: DiffArea }>;
}

/** Null for a take that did not come to its end; nobody was told of it.
 *  Errors: ESTALE for a disk that may not be as it was; EBADMSG for a journal or storage that is not. The journal's
 *  place is then closed; it is not for null. */
export async function restoreSnapshot(
  reactor: Reactor,
  { place, tracker, reopen = (each) => reopenStoragePlace(each.path, each) }: RestoreOptions,
  context: { readonly portionBytes: number; readonly listener: StorageListener },
): Promise<Restored | null> {
  let journal: Journal | null = null;
  const pieces: StoragePiece[] = [];
  try {
    const content = await readJournal(reactor, place);
    if (content.taken === null) return null;
    const trackers = content.plan.disks.map(({ name }, disk) => trustedTracker(tracker, content, { name, disk }));
    const origins = trackers.flatMap((each) => each.origins);
    const portionBytes = portionFor(content.plan.disks, context.portionBytes);
    for (const [number, { path, limitBytes, ...rest }] of content.places.entries()) {
      const used = content.used[number]!;
      const again = reopen({ path, limitBytes, ...rest });
      const limits = { limitBytes: limitBytes ?? Infinity, portionBytes };
      const piece = new StoragePiece(reactor, { path, place: again, ...limits, used });
      pieces.push(piece);
      refuseOwnStorage(origins, piece);
      await checkLabel(reactor, piece, { id: content.plan.id, piece: number });
      await checkLength(reactor, piece, used);
    }
    const storage = DiffStorage.reopen(reactor, pieces, context.listener);
    const opened = new Journal(reactor, place, content);
    journal = opened;
    const disks = trackers.map((each, disk) => ({
      tracker: each,
      area: areaOf(content, { storage, journal: opened, disk }),
    }));
    const bases = pieces.map(({ base }) => base);
    await eachRow(reactor, place, (row) => putRow(disks[row.disk]!.area, row, bases));
    return { content, journal: opened, storage, disks };
  } catch (cause) {
    for (const piece of pieces) await piece.close(true);
    if (journal === null) place.close();
    else await journal.close();
    throw cause;
  }
}

/** Errors: ESTALE, saying why. */
function trustedTracker(
  find: (disk: string) => Tracker,
  { plan, frames, broken }: JournalContent,
  { name, disk }: { readonly name: string; readonly disk: number },
): Tracker {
  const refuse = (why: string, cause?: unknown): BlksnapError =>
    new BlksnapError('ESTALE', `Cannot bring the snapshot back: ${why}`, { cause });
  let tracker: Tracker;
  try {
    tracker = find(name);
  } catch (cause) {
    throw refuse(`disk "${name}" is not attached (${toBlksnapError(cause).message})`, cause);
  }
  const { size } = plan.disks[disk]!;
  if (size > tracker.disk.size)
    throw refuse(`disk "${name}" has ${tracker.disk.size} bytes, and had ${size} at the take`);
  if (broken.has(disk)) return tracker;
  const { cbt, disk: there, below } = tracker;
  if (below !== there.device) throw refuse(`a filter redirects some of disk "${name}"`);
  const kept = cbt.kept.frames(plan.id);
  if (kept === null && cbt.doubt !== '') throw refuse(`of disk "${name}": ${cbt.doubt}`);
  if (kept === null) throw refuse(`disk "${name}" was written while the snapshot got no copies of it`);
  if (!(kept <= frames)) throw refuse(`its journal is damaged: ${frames} frames are whole, ${kept} were written`);
  return tracker;
}

/** The last chunk that is in use must be there. Errors: EBADMSG, ENOMEM. */
async function checkLength(reactor: Reactor, piece: StoragePiece, used: number): Promise<void> {
  const at = reactor.arena.allocate(CHUNK);
  if (at === NO_MEMORY) throw new BlksnapError('ENOMEM', 'Cannot bring a snapshot back: the arena is full');
  try {
    if ((await readWhole(reactor, piece, at, CHUNK, (used - 1) * CHUNK)) === CHUNK) return;
    throw new BlksnapError('EBADMSG', `"${piece.path}" was cut: it has less than the ${used} chunks that it had`);
  } finally {
    reactor.arena.release(at);
  }
}

function areaOf(
  { plan, taken, maps, broken }: JournalContent,
  { storage, journal, disk }: { readonly storage: DiffStorage; readonly journal: Journal; readonly disk: number },
): DiffArea {
  const { size, blockSize } = plan.disks[disk]!;
  const area = new DiffArea(plan.id, storage, size, maps[disk]!, { journal, disk });
  area.blockSize = blockSize;
  area.generationId = taken!.disks[disk]!.generationId;
  area.changeNumber = taken!.disks[disk]!.changeNumber;
  area.brokenBy = broken.get(disk) ?? 0;
  return area;
}

/** The first row of a chunk counts. */
function putRow(area: DiffArea, { type, chunk, count, position, piece }: Row, bases: readonly number[]): void {
  const { table } = area;
  for (let i = 0; i < count;) {
    const here = (chunk + i) as ChunkIndex;
    const whole = type === ROW_STORED ? 0 : table.zeroEmpty(here, chunk + count);
    if (whole > 0) {
      area.zeroChunks += whole;
      i += whole;
      continue;
    }
    if (table.get(here) === UNSAVED) {
      table.set(here, type === ROW_STORED ? FIRST_POSITION + bases[piece]! + position + i : ZERO);
      if (type === ROW_STORED) area.savedChunks++;
      else area.zeroChunks++;
    }
    i++;
  }
}

/** Removes what a journal names that is certainly its own, and the journal. Nothing of it may be in use. */
export async function discardJournal(
  reactor: Reactor,
  { place, reopen = (each) => reopenStoragePlace(each.path, each) }: Omit<RestoreOptions, 'tracker'>,
): Promise<void> {
  const content = await readJournal(reactor, place).catch(() => null);
  for (const [number, each] of (content?.places ?? []).entries()) {
    await removePiece(reactor, reopen, { place: each, label: { id: content!.plan.id, piece: number } });
  }
  place.remove();
}

async function removePiece(
  reactor: Reactor,
  reopen: (place: PlaceNote) => StoragePlace,
  { place, label }: { readonly place: PlaceNote; readonly label: { readonly id: string; readonly piece: number } },
): Promise<void> {
  let piece: StoragePiece;
  try {
    const { path } = place;
    piece = new StoragePiece(reactor, { path, place: reopen(place), limitBytes: Infinity, portionBytes: CHUNK });
  } catch {
    return; // It is gone, or somebody else's: nothing to remove.
  }
  const ours = await checkLabel(reactor, piece, label).then(
    () => true,
    () => false,
  );
  await piece.close(!ours);
}
