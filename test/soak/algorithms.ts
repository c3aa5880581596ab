/** The four long tests. Each runs until `running` says no, in rounds that leave nothing behind. */

import { ChangeReader } from '../../src/index.ts';
import { SECTOR, sequencesIn } from './sectors.ts';
import { SECTORS } from './disk.ts';
import type { HeldImage, SoakDisk } from './disk.ts';

const CHUNK_SECTORS = 8;

export type Algorithm = (disk: SoakDisk, running: () => boolean) => Promise<number>;

/** Writes at the edges of chunks, to the origin and to the image; what lies beside them stays as it was. */
const boundary: Algorithm = async (disk, running) => {
  let rounds = 0;
  for (; running(); rounds++) {
    const image = await disk.take();
    for (let i = 0; i < 40; i++) {
      const edge = CHUNK_SECTORS * (1 + disk.random.below(SECTORS / CHUNK_SECTORS - 4));
      const sector = edge - 1 + disk.random.below(3);
      const count = 1 + disk.random.below(2 * CHUNK_SECTORS);
      if (disk.random.below(2) === 0) await disk.write(disk.live, disk.model, sector, count);
      else await disk.write(image.bytes, image.model, sector, count);
      const around = { sector: sector - 1, count: count + 2 };
      await disk.verify(disk.live, disk.model, { where: 'origin', ...around });
      await disk.verify(image.bytes, image.model, { where: 'image', ...around });
    }
    await disk.verify(image.bytes, image.model, { where: 'image' });
    await disk.verify(disk.live, disk.model, { where: 'origin' });
    await disk.destroy(image);
  }
  return rounds;
};

/** Writes that never stop, takes in the midst of them: each sector of the image is whole, was sent before the take
 *  ended, is no older than what had been answered when it began, and does not change any more. */
const corrupt: Algorithm = async (disk, running) => {
  const answered: Uint32Array = disk.model.slice();
  let writing = true;
  const writer = async (): Promise<void> => {
    while (writing) {
      const count = 1 + disk.random.below(32);
      // Writers have tracks of their own: two writes to one sector must not be on their way at once.
      const sector = own.next(count);
      await disk.write(disk.live, disk.model, sector, count);
      answered.set(disk.model.subarray(sector, sector + count), sector);
      own.done(sector, count);
    }
  };
  const own = new Tracks(disk);
  const writers = Array.from({ length: 4 }, writer);
  let rounds = 0;
  for (; running(); rounds++) {
    const oldest = answered.slice();
    const image = await disk.take();
    const newest = disk.model.slice();
    const seen = new Uint32Array(SECTORS);
    for (let pass = 0; pass < 3; pass++) {
      const data = await image.bytes.read(0, SECTORS * SECTOR);
      for (const [sector, sequence] of sequencesIn(data, 0, 'image').entries()) {
        const fits = sequence >= oldest[sector]! && sequence <= newest[sector]!;
        if (!fits || (pass > 0 && sequence !== seen[sector])) {
          throw new Error(
            `image: sector ${sector} is of write ${sequence}, want ${oldest[sector]} to ${newest[sector]}, before ${seen[sector]}`,
          );
        }
        seen[sector] = sequence;
      }
    }
    await disk.destroy(image);
  }
  writing = false;
  await Promise.all(writers);
  await disk.verify(disk.live, disk.model, { where: 'origin' });
  return rounds;
};

/** Hands out ranges of sectors that no other write holds. */
class Tracks {
  readonly #busy = new Uint8Array(SECTORS);
  readonly #disk: SoakDisk;

  constructor(disk: SoakDisk) {
    this.#disk = disk;
  }

  next(count: number): number {
    for (;;) {
      const sector = this.#disk.random.below(SECTORS - count);
      if (this.#busy.subarray(sector, sector + count).includes(1)) continue;
      this.#busy.fill(1, sector, sector + count);
      return sector;
    }
  }

  done(sector: number, count: number): void {
    this.#busy.fill(0, sector, sector + count);
  }
}

/** Several snapshots on storages of all kinds come and go in any order, so that their regions interleave. */
const diffStorage: Algorithm = async (disk, running) => {
  const held: HeldImage[] = [];
  let rounds = 0;
  for (; running(); rounds++) {
    const places = [undefined, disk.daemon.directory, disk.daemon.path(`diff-${rounds}`), ':memory:'];
    if (held.length < 4) held.push(await disk.take(places[disk.random.below(places.length)]));
    for (let i = 0; i < 30; i++) await disk.writeRandom();
    const written = held[disk.random.below(held.length)]!;
    for (let i = 0; i < 5; i++) await disk.writeRandom(written.bytes, written.model);
    for (const image of held) await disk.verify(image.bytes, image.model, { where: `image ${image.id}` });
    if (held.length > 1 && disk.random.below(2) === 0) {
      const [gone] = held.splice(disk.random.below(held.length), 1);
      await disk.destroy(gone!);
    }
    await disk.verify(disk.live, disk.model, { where: 'origin' });
  }
  for (const image of held) await disk.destroy(image);
  return rounds;
};

/** A copy that is brought up to date by the change map alone is equal to every image. */
const cbt: Algorithm = async (disk, running) => {
  const copies: Array<{ data: Buffer; generation: string; number: number }> = [];
  let rounds = 0;
  for (; running(); rounds++) {
    for (let i = disk.random.below(20); i > 0; i--) await disk.writeRandom();
    const image = await disk.take();
    const whole = await image.bytes.read(0, SECTORS * SECTOR);
    sequencesIn(whole, 0, 'image');
    const changes = await ChangeReader.open(disk.client, 'soak');
    for (const copy of copies) {
      const ranges = changes.since(copy.generation, copy.number);
      for (const { offset, length } of ranges ?? [{ offset: 0, length: whole.length }]) {
        whole.copy(copy.data, offset, offset, offset + length);
      }
      if (!copy.data.equals(whole)) throw new Error(`round ${rounds}: the copy since ${copy.number} differs`);
      copy.generation = image.view.images[0]!.generationId;
      copy.number = image.view.images[0]!.changeNumber;
      // One of them stays behind for a while: a differential reading.
      if (disk.random.below(3) === 0) break;
    }
    const { generationId: generation, changeNumber: number } = image.view.images[0]!;
    if (copies.length < 3) copies.push({ data: Buffer.from(whole), generation, number });
    await disk.destroy(image);
  }
  return rounds;
};

export const ALGORITHMS: Readonly<Record<string, Algorithm>> = { boundary, corrupt, diff_storage: diffStorage, cbt };
