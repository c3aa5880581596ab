/** What must hold after every step: every byte of every disk and image, and of the change history that nothing which
 *  differs is told as unchanged. */

import { READ, runBio } from '../../src/block/bio.ts';
import { ERRNO } from '../../src/util/errors.ts';
import { NO_MEMORY } from '../../src/io/arena.ts';
import { expectBytes, mayFail } from './traffic.ts';
import type { Past, SimDisk, SimImage, World } from './world.ts';

const CHUNK = 4096;

export async function check(world: World): Promise<void> {
  const { clock } = world.reactor;
  clock.calm++;
  for (const owner of world.disks) {
    adoptDisk(owner);
    const { model, disk } = owner;
    expectBytes(model.name, await read(world, disk, 0, model.content.length), model.content, 0);
  }
  for (const [snapshot, images] of world.held) {
    const kept: SimImage[] = [];
    for (const held of images) if (await checkImage(world, held)) kept.push(held);
    world.held.set(snapshot, kept);
  }
  for (const owner of world.disks) checkHistory(world, owner);
  await world.machine.depot.check(world);
  clock.calm--;
}

/** Nothing of the disk is under way: what cut-off changes left is what is there. */
function adoptDisk({ model, file }: SimDisk): void {
  const actual = new Uint8Array(file.size);
  file.read(0, actual);
  model.adopt(actual);
}

async function read(
  world: World,
  sink: SimDisk['disk'] | SimImage['image'],
  offset: number,
  length: number,
): Promise<Uint8Array> {
  const { status, got } = await tryRead(world, sink, offset, length);
  if (status !== 0) throw new Error(`${sink.name} cannot be read at ${offset}: errno ${status}`);
  return got;
}

async function tryRead(
  { reactor, pool }: World,
  sink: SimDisk['disk'] | SimImage['image'],
  offset: number,
  length: number,
): Promise<{ status: number; got: Uint8Array }> {
  const { arena } = reactor;
  const at = arena.allocate(length);
  if (at === NO_MEMORY) throw new Error('leak: the arena is full, and nobody has any of it');
  const status = await reactor.until(runBio(pool, sink, { op: READ, offset, length, at }));
  const got = arena.bytes.slice(at, at + length);
  arena.release(at);
  return { status, got };
}

/** Whether the image is still there. */
async function checkImage(world: World, held: SimImage): Promise<boolean> {
  const { image, content } = held;
  if (image.corrupted !== 0) return await checkLost(world, held);
  for (const { offset, length } of pieces(content.length, held.released)) {
    const { status, got } = await tryRead(world, image, offset, length);
    // What was on its way to the storage before the calm may still fail.
    if (image.corrupted !== 0) return await checkLost(world, held);
    if (status !== 0) throw new Error(`${image.name} cannot be read at ${offset}: errno ${status}`);
    adoptImage(held, offset, got);
    expectBytes(image.name, got, content, offset);
  }
  held.uncertain.clear();
  for (const chunk of held.released) await checkReleased(world, held, chunk * CHUNK);
  return true;
}

async function checkLost(world: World, { image, owner }: SimImage): Promise<false> {
  const cut = image.size > owner.model.content.length;
  if (!cut && !mayFail(world)) throw new Error(`${image.name} was lost without a reason: errno ${image.corrupted}`);
  const { status } = await tryRead(world, image, 0, CHUNK);
  if (status !== ERRNO.EIO) throw new Error(`${image.name} is lost, and a read of it ends with ${status}`);
  return false;
}

function adoptImage({ uncertain, content }: SimImage, start: number, got: Uint8Array): void {
  for (const { offset, data } of uncertain) {
    for (const [i, fresh] of data.entries()) {
      const value = got[offset + i - start];
      if (value === fresh) content[offset + i] = fresh;
    }
  }
}

/** A chunk that its reader was done with: right, or not at all. */
async function checkReleased(world: World, { image, content }: SimImage, offset: number): Promise<void> {
  const { status, got } = await tryRead(world, image, offset, Math.min(CHUNK, content.length - offset));
  if (status === 0) expectBytes(`${image.name} (released)`, got, content, offset);
  else if (status !== ERRNO.EIO) throw new Error(`${image.name}: a released chunk reads with errno ${status}`);
}

/** What lies between the chunks left out. */
function pieces(size: number, without: ReadonlySet<number>): Array<{ offset: number; length: number }> {
  const found: Array<{ offset: number; length: number }> = [];
  let offset = 0;
  for (const chunk of [...[...without].sort((a, b) => a - b), Math.ceil(size / CHUNK)]) {
    const end = Math.min(chunk * CHUNK, size);
    if (end > offset) found.push({ offset, length: end - offset });
    offset = (chunk + 1) * CHUNK;
  }
  return found;
}

// --- change history ---------------------------------------------------------------------------

/** Every byte that differs between two states with numbers of one history is told: between images, from images that
 *  are gone (a backup may have been made of them), and up to now. */
function checkHistory(world: World, owner: SimDisk): void {
  const { cbt } = owner.tracker;
  const images = world.images.filter((held) => held.owner === owner);
  for (const older of [...images, ...world.past(owner)]) {
    for (const newer of images) {
      if (newer.generationId === older.generationId && newer.changeNumber > older.changeNumber) checkTold(older, newer);
    }
    if (older.generationId !== cbt.generationId) continue;
    const { content } = owner.model;
    const { blockSize, map } = cbt;
    for (let offset = 0; offset < content.length; offset += blockSize) {
      const end = Math.min(offset + blockSize, content.length);
      if (map[offset / blockSize]! <= older.changeNumber && differs(older.content, content, offset, end))
        throw new Error(`${owner.model.name}: a change of the block at ${offset} was not tracked`);
    }
  }
}

function checkTold(older: Past, newer: SimImage): void {
  let offset = 0;
  for (const { length, changed } of newer.image.changedSince(older.changeNumber, 0, newer.content.length)) {
    if (!changed && differs(older.content, newer.content, offset, offset + length))
      throw new Error(`${newer.image.name}: a change between ${offset} and ${offset + length} is not told`);
    offset += length;
  }
  if (offset !== newer.content.length)
    throw new Error(`${newer.image.name}: changes are told for ${offset} bytes only`);
}

function differs(a: Uint8Array, b: Uint8Array, from: number, to: number): boolean {
  return Buffer.compare(a.subarray(from, to), b.subarray(from, to)) !== 0;
}
