/** Takes among traffic: what an image may show of the writes that were under way.
 *
 *  All that had ended before is in it, nothing that began afterwards, and each of the others whole or not at all; never
 *  one without those that had ended before it began, on any disk of the snapshot. */

import { NO_MEMORY } from '../../src/io/arena.ts';
import { READ, runBio } from '../../src/block/bio.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import type { Prng } from '../../src/util/prng.ts';
import { CHUNK } from '../../src/blksnap/chunk-table.ts';
import type { DiffStorageOptions } from '../../src/blksnap/diff-storage.ts';
import { SMALLEST_PIECE_BYTES } from '../../src/nbd/limits.ts';
import type { SnapshotImage } from '../../src/blksnap/image.ts';
import type { Change } from './disk-model.ts';
import { overlaps } from './disk-model.ts';
import { drawPlace, forgetKept, journalPlace, newKept } from './persistent.ts';
import { mayFail } from './traffic.ts';
import { VirtualFile } from './virtual-file.ts';
import type { SimDisk, SimImage, World } from './world.ts';

const PLACES = 4;

interface Planned {
  readonly owner: SimDisk;
  readonly before: Uint8Array;
  readonly maybe: Change[];
}

/** `pages`: of its storage, where there is less of it than the weather has. */
export async function take(world: World, random: Prng, pages = world.machine.weather.storagePages): Promise<void> {
  const { disks, machine, set } = world;
  const chosen = disks.filter(() => random.chance(0.6));
  if (chosen.length === 0) chosen.push(disks[0]!);
  const { storagePages } = machine.weather;
  const beganAt = machine.tick();
  const planned = chosen.map((owner) => ({
    owner,
    before: owner.model.content.slice(),
    maybe: [...owner.model.uncertain],
  }));
  const { persistent: often } = machine.weather;
  const whole = chosen.every(({ tracker, disk }) => tracker.below === disk.device);
  const kept = often > 0 && random.chance(often) && whole ? newKept(machine) : null;
  const heard = chosen.map(({ model }, i) => model.listen((change) => planned[i]!.maybe.push(change)));
  const snapshot = await set
    .create(
      chosen.map(({ tracker }) => tracker),
      kept === null ? drawStorage(world, random, pages) : drawPlace(world, kept, random, pages),
      kept === null ? {} : { persistent: { open: () => journalPlace(world, kept), memo: null } },
    )
    .finally(() => heard.forEach((stop) => stop()))
    .catch((error: unknown) => {
      if (kept !== null) forgetKept(machine, kept);
      const { storageWriteError, writebackError, hoggedArena } = machine.weather;
      if (storagePages !== Infinity || storageWriteError + writebackError > 0 || (kept !== null && hoggedArena > 0))
        return null;
      throw error;
    });
  if (snapshot === null) return;
  world.reactor.note(beganAt, snapshot.images.length);
  const images: SimImage[] = [];
  const verdicts: Verdict[] = [];
  for (const [i, image] of snapshot.images.entries()) {
    const content = await readAll(world, image);
    if (content === null) continue;
    verdicts.push(...judge(image.name, planned[i]!, content));
    const { generationId, changeNumber } = image;
    images.push({
      image,
      owner: chosen[i]!,
      content,
      generationId,
      changeNumber,
      released: new Set(),
      uncertain: new Set(),
      busy: 0,
    });
  }
  expectOrder(verdicts);
  world.held.set(snapshot, images);
  for (const { image } of images) world.serving.offerImage(image);
  if (kept === null) return;
  world.kept.set(snapshot, kept);
  kept.images = new Map(images.map((image) => [image.owner.disk.name, image]));
  kept.answered = true;
}

/** A place of its own, as large as the weather has it. */
export function drawStorage(
  { reactor, machine, places }: World,
  random: Prng,
  storagePages = machine.weather.storagePages,
): DiffStorageOptions {
  const portionBytes = (64 + 64 * random.below(8)) * KIB;
  const kind = random.chance(0.5) ? 'file' : 'memory';
  const writtenBack = kind === 'file';
  const direct = kind === 'memory' && portionBytes % (128 * KIB) === 0;
  const file = new VirtualFile({ name: 'storage', size: 0, capacityPages: storagePages, writtenBack });
  places.push(file);
  if (places.length > PLACES) places.shift();
  return {
    path: ':memory:',
    limitBytes: storagePages === Infinity ? 64 * MIB : storagePages * CHUNK,
    portionBytes,
    place: {
      fd: reactor.openFile(file),
      owned: null,
      given: null,
      kind,
      sizeBytes: Infinity,
      ...(direct && { slabs: reactor.slabs }),
    },
  };
}

/** All of an image, without faults of the machine. Null when it is lost. */
async function readAll(world: World, image: SnapshotImage): Promise<Uint8Array | null> {
  const { reactor, pool } = world;
  const at = reactor.arena.allocate(image.size);
  if (at === NO_MEMORY) return null;
  reactor.clock.calm++;
  const status = await runBio(pool, image, { op: READ, offset: 0, length: image.size, at });
  reactor.clock.calm--;
  const content = reactor.arena.bytes.slice(at, at + image.size);
  reactor.arena.release(at);
  if (status === 0) return content;
  if (image.corrupted === 0 && !mayFail(world)) throw new Error(`${image.name} cannot be read: errno ${status}`);
  return null;
}

interface Verdict {
  readonly change: Change;
  readonly inside: boolean;
}

function judge(name: string, { before, maybe }: Planned, content: Uint8Array): Verdict[] {
  const allowed = (i: number): boolean =>
    content[i] === before[i] ||
    maybe.some(({ offset, length, data }) => i >= offset && i < offset + length && data[i - offset] === content[i]);
  for (let i = 0; i < content.length; i++) {
    if (content[i] !== before[i] && !allowed(i))
      throw new Error(`${name}: byte ${i} is neither old nor new after the take`);
  }
  const verdicts: Verdict[] = [];
  for (const change of maybe) {
    if (Number.isNaN(change.endedAt) || maybe.some((other) => other !== change && overlaps(other, change))) continue;
    const { offset, length, data } = change;
    let [old, fresh] = [0, 0];
    for (let i = 0; i < length; i++) {
      if (data[i] === before[offset + i]) continue;
      if (content[offset + i] === data[i]) fresh++;
      else old++;
    }
    if (fresh > 0 && change.endedAt === Infinity && !change.remote)
      throw new Error(`${name}: a write at ${offset} is in the image that ended after it`);
    const maybeCut = change.remote && length > SMALLEST_PIECE_BYTES;
    if (old > 0 && fresh > 0 && !maybeCut) throw new Error(`${name}: a write at ${offset} is in the image by half`);
    if (old > 0 !== fresh > 0) verdicts.push({ change, inside: fresh > 0 });
  }
  return verdicts;
}

function expectOrder(verdicts: readonly Verdict[]): void {
  for (const early of verdicts) {
    for (const late of verdicts) {
      if (late.inside && !early.inside && early.change.endedAt < late.change.startedAt)
        throw new Error('a snapshot shows a write, and not one that had ended before it began');
    }
  }
}
