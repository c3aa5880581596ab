/** Persistent snapshots of a simulated machine: their journals and storage are files that outlive the daemon, and their
 *  images must come back as they were, every byte, or with a reason not at all.
 *
 *  After a kill, and after an end in order (also when the machine stops then), each comes back. After a power loss in the
 *  middle of work, and when somebody else has written to a disk of it, none may. What was not answered yet (a take, a destroy) may be there or not. */

import fs from 'node:fs';
import type { JournalPlace } from '../../src/blksnap/journal-place.ts';
import type { DiffStorageOptions } from '../../src/blksnap/diff-storage.ts';
import type { Snapshot } from '../../src/blksnap/snapshot.ts';
import type { RestoreOptions } from '../../src/blksnap/restore-snapshot.ts';
import { KIB } from '../../src/util/units.ts';
import type { Prng } from '../../src/util/prng.ts';
import { mayFail } from './traffic.ts';
import { VirtualFile } from './virtual-file.ts';
import type { Machine, SimImage, World } from './world.ts';

/** A persistent snapshot, as the machine has it. */
export interface Kept {
  readonly journal: VirtualFile;
  readonly places: Map<string, VirtualFile>;
  /** Of disks by name; empty until the take is answered. */
  images: ReadonlyMap<string, SimImage>;
  answered: boolean;
  /** Somebody is about to destroy it. */
  going: boolean;
}

export function newKept(machine: Machine): Kept {
  const journal = new VirtualFile({ name: 'journal', size: 0, logged: true, writtenBack: true });
  const kept = { journal, places: new Map<string, VirtualFile>(), images: new Map(), answered: false, going: false };
  machine.persistent.push(kept);
  return kept;
}

export function forgetKept({ persistent }: Machine, kept: Kept): void {
  const at = persistent.indexOf(kept);
  if (at >= 0) persistent.splice(at, 1);
}

/** A place of its own for the next piece of storage, as large as the weather has it. */
export function drawPlace(
  { reactor, machine }: World,
  kept: Kept,
  random: Prng,
  storagePages = machine.weather.storagePages,
): DiffStorageOptions {
  const path = `sim:${kept.places.size}`;
  const file = new VirtualFile({
    name: 'storage',
    size: 0,
    capacityPages: storagePages,
    logged: true,
    writtenBack: true,
  });
  kept.places.set(path, file);
  return {
    path,
    limitBytes: storagePages === Infinity ? 64 * 1024 * KIB : storagePages * 4 * KIB,
    portionBytes: (64 + 64 * random.below(8)) * KIB,
    place: { fd: reactor.openFile(file), owned: null, given: null, kind: 'file', sizeBytes: Infinity },
  };
}

export function journalPlace({ reactor, machine }: World, kept: Kept): JournalPlace {
  const fd = reactor.openFile(kept.journal);
  const remove = (): void => forgetKept(machine, kept);
  return { fd, path: 'sim journal', syncName: () => {}, close: () => fs.closeSync(fd), remove };
}

/** What a daemon does when it starts, before anything can be written. `excuse`: 'power' lets none come back, 'doubt' lets
 *  any stay away. */
export async function restoreAll(world: World, excuse: string): Promise<void> {
  const { reactor, machine, set } = world;
  machine.clock.calm++;
  for (const kept of machine.persistent.slice()) {
    const restored = await reactor.until(set.restore(optionsOf(world, kept)).catch((error: unknown) => error as Error));
    if (restored instanceof Error || restored === null) {
      expectExcuse(world, kept, { why: restored?.message ?? 'its take did not come to its end', excuse });
      forgetKept(machine, kept);
    } else if (!kept.answered || kept.going) {
      await reactor.until(set.destroy(restored.snapshot.id));
    } else {
      const good = restored.snapshot.images.filter(({ corrupted }) => corrupted === 0);
      if (excuse === 'power' && good.length > 0) throw new Error('a persistent snapshot came back after a power loss');
      if (good.some(({ origin }) => machine.foreign.has(origin)))
        throw new Error('a persistent snapshot came back, and somebody else had written to its disk');
      hold(world, kept, restored.snapshot);
    }
  }
  machine.clock.calm--;
}

function optionsOf(world: World, kept: Kept): RestoreOptions {
  return {
    place: journalPlace(world, kept),
    tracker: (name) => world.disks.find(({ disk }) => disk.name === name)!.tracker,
    reopen: ({ path, kind }) => {
      const fd = world.reactor.openFile(kept.places.get(path)!);
      return { fd, owned: null, given: null, kind, sizeBytes: Infinity };
    },
  };
}

function expectExcuse(world: World, kept: Kept, { why, excuse }: { why: string; excuse: string }): void {
  if (excuse !== '' || !kept.answered || kept.going || mayFail(world)) return;
  const cut = [...kept.images].some(
    ([name, { content }]) => world.disks.find(({ disk }) => disk.name === name)!.disk.size < content.length,
  );
  const foreign = [...kept.images.keys()].some((name) => world.machine.foreign.has(name));
  if (!cut && !foreign) throw new Error(`a persistent snapshot did not come back: ${why}`);
}

function hold(world: World, kept: Kept, snapshot: Snapshot): void {
  const images: SimImage[] = [];
  for (const [name, was] of kept.images) {
    const image = snapshot.image(name)!;
    const owner = world.disks.find(({ disk }) => disk.name === name)!;
    const { generationId, changeNumber } = was;
    if (image.generationId !== generationId || image.changeNumber !== changeNumber)
      throw new Error(`${image.name} came back with another place in the history`);
    images.push({ ...was, image, owner, released: new Set(), uncertain: new Set() });
  }
  for (const { image } of images) world.serving.offerImage(image);
  world.held.set(snapshot, images);
  world.kept.set(snapshot, kept);
}

/** The daemon is killed: its descriptors go, its files stay. */
export function letGo({ journal, storage }: Snapshot): void {
  for (const { fd } of storage.pieces) fs.closeSync(fd);
  journal?.place.close();
}
