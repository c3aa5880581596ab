/** What copy-on-write reads, stores and leaves out. That images stay right is the model's to prove. */

import fs from 'node:fs';
import { describe, expect, test } from 'vitest';
import { DISCARD, READ, WRITE_ZEROES, runBio } from '../block/bio.ts';
import type { Bio } from '../block/bio.ts';
import { BlockFilter } from '../block/filter.ts';
import { KIB, MIB, TIB } from '../util/units.ts';
import { Core } from '../../test/core.ts';

const MEMORY = { path: ':memory:', limitBytes: 64 * MIB };
const SIZE = 16 * MIB;

/** A disk of holes, but for 64 KiB of data at 9 MiB + 1 KiB. */
async function sparse(core: Core) {
  fs.writeFileSync(core.path('a'), '');
  fs.truncateSync(core.path('a'), SIZE);
  const fd = fs.openSync(core.path('a'), 'r+');
  fs.writeSync(fd, Buffer.alloc(64 * KIB, 7), 0, 64 * KIB, 9 * MIB + KIB);
  fs.closeSync(fd);
  return await core.disk('a', SIZE);
}

describe('holes', () => {
  test.each([
    ['discard', DISCARD],
    ['writeZeroes', WRITE_ZEROES],
  ] as const)('a %s of a sparse disk reads and stores its data alone', async (_name, op) => {
    const core = await Core.open();
    const { disk, tracker } = await sparse(core);
    const before = fs.readFileSync(core.path('a'));
    const snapshot = await core.set.create([tracker], MEMORY);
    expect(await runBio(core.pool, disk, { op, offset: 0, length: SIZE })).toBe(0);
    const { counters } = tracker.cow;
    await expect
      .poll(() => counters)
      .toMatchObject({ reads: 1, readBytes: 68 * KIB, copiedChunks: 17, storedBytes: 68 * KIB });
    expect(counters.holeChunks).toBe(SIZE / 4096 - 17);
    expect(snapshot.storage.usedBytes).toBe(68 * KIB);
    const image = await core.read(snapshot.images[0]!, 0, SIZE);
    expect(image.status).toBe(0);
    expect(image.data.equals(before)).toBe(true);
    await core.close();
  });

  test('a discard of terabytes and a question about them do not hold up the thread, and places beyond 8 TiB are right', async () => {
    const core = await Core.open();
    const size = 9 * TIB;
    fs.writeFileSync(core.path('a'), 'first');
    fs.truncateSync(core.path('a'), size);
    const { disk, tracker } = await core.disk('a', size);
    const [image] = (await core.set.create([tracker], MEMORY)).images;
    expect(await core.write(disk, size - 4096, 4096, 7)).toBe(0);
    const began = process.cpuUsage();
    expect(await runBio(core.pool, disk, { op: DISCARD, offset: 0, length: size - 4096 })).toBe(0);
    const [data, hole] = await image!.extents(0, size);
    expect([data?.hole, hole?.hole]).toEqual([false, true]);
    // Looking at every chunk takes half a minute of work, also of a processor that has other work.
    const { user, system } = process.cpuUsage(began);
    expect((user + system) / 1000).toBeLessThan(5000);
    expect((await core.read(image!, 0, 512)).data.toString('latin1', 0, 5)).toBe('first');
    expect((await core.read(image!, size - 4096, 4096)).data.every((byte) => byte === 0)).toBe(true);
    expect((await core.read(disk, size - 4096, 4096)).data.every((byte) => byte === 7)).toBe(true);
    await core.close();
  });

  test('large writes look for them, small ones just read', async () => {
    const core = await Core.open();
    const { disk, tracker } = await sparse(core);
    const snapshot = await core.set.create([tracker], MEMORY);
    await core.write(disk, 0, 256 * KIB, 1);
    expect(tracker.cow.counters).toMatchObject({ reads: 0, holeChunks: 64, zeroChunks: 0 });
    await core.write(disk, MIB, 4 * KIB, 1);
    expect(tracker.cow.counters).toMatchObject({ reads: 1, holeChunks: 64, zeroChunks: 1 });
    await core.write(disk, 200 * KIB, 256 * KIB, 2);
    expect(tracker.cow.counters).toMatchObject({ reads: 1, holeChunks: 64 + 50, zeroChunks: 1 });
    expect((await core.read(snapshot.images[0]!, 0, 2 * MIB)).data.equals(Buffer.alloc(2 * MIB))).toBe(true);
    await core.close();
  });

  test('are not believed when a filter lies between, since the data may be elsewhere', async () => {
    const core = await Core.open();
    const { disk, tracker } = await sparse(core);
    await disk.attachFilter(new Nines(core));
    const snapshot = await core.set.create([tracker], MEMORY);
    await runBio(core.pool, disk, { op: DISCARD, offset: 0, length: MIB });
    await expect.poll(() => tracker.cow.counters).toMatchObject({ holeChunks: 0, copiedChunks: 256 });
    expect((await core.read(snapshot.images[0]!, 0, MIB)).data.equals(Buffer.alloc(MIB, 9))).toBe(true);
    await core.close();
  });

  test('beyond the end of a file that was cut are no holes: the image is lost, not zero', async () => {
    const core = await Core.open();
    const { disk, tracker } = await sparse(core);
    const snapshot = await core.set.create([tracker], MEMORY);
    fs.truncateSync(core.path('a'), MIB);
    await runBio(core.pool, disk, { op: WRITE_ZEROES, offset: 8 * MIB, length: MIB });
    expect(snapshot.images[0]!.corrupted).not.toBe(0);
    await core.close();
  });
});

test('a chunk is copied once, however often it is written', async () => {
  const core = await Core.open();
  const { disk, tracker } = await core.disk('a', MIB);
  await core.set.create([tracker], MEMORY);
  for (let i = 0; i < 5; i++) await core.write(disk, 512, 1024, i);
  await expect
    .poll(() => tracker.cow.counters)
    .toMatchObject({ reads: 1, readBytes: 4096, copiedChunks: 1, heldWrites: 1, storedBytes: 4096 });
  await core.close();
});

test('a discard that waits for memory many times looks at each of its chunks a few times', async () => {
  const core = await Core.open({ copyMemoryBytes: 256 * KIB });
  const { disk, tracker } = await core.disk('a', SIZE);
  const [image] = (await core.set.create([tracker], MEMORY)).images;
  const { table } = image!.area;
  const get = table.get.bind(table);
  let looks = 0;
  table.get = (chunk) => {
    looks++;
    return get(chunk);
  };
  expect(await runBio(core.pool, disk, { op: DISCARD, offset: 0, length: SIZE })).toBe(0);
  expect(tracker.cow.counters.memoryWaits).toBeGreaterThan(20);
  expect(looks).toBeLessThan((8 * SIZE) / 4096);
  table.get = get;
  expect((await core.read(image!, 0, SIZE)).data.equals(Buffer.alloc(SIZE, 'a '))).toBe(true);
  await core.close();
});

describe('copy units', () => {
  /** A disk without zeros, and a snapshot of it. */
  async function withUnits(size: number, { copyUnitBytes = 64 * KIB, copyMemoryBytes = MIB } = {}) {
    const core = await Core.open({ copyMemoryBytes, parameters: { copyUnitBytes } });
    const before = Buffer.alloc(size);
    for (let sector = 0; sector * 512 < size; sector++)
      before.fill(1 + (sector % 255), sector * 512, (sector + 1) * 512);
    fs.writeFileSync(core.path('a'), before);
    const { disk, tracker } = await core.disk('a', size);
    const [image] = (await core.set.create([tracker], MEMORY)).images;
    const expectImage = async (): Promise<void> => {
      const { status, data } = await core.read(image!, 0, size);
      expect([status, data.equals(before)]).toEqual([0, true]);
    };
    return { core, disk, image: image!, counters: tracker.cow.counters, expectImage };
  }

  test('a first write saves all of each unit that it touches, in one read; the next write there saves nothing', async () => {
    const { core, disk, counters, expectImage } = await withUnits(MIB);
    await core.write(disk, 100 * KIB, 4 * KIB, 1);
    expect(counters).toMatchObject({ reads: 1, readBytes: 64 * KIB, heldWrites: 1 });
    await expect.poll(() => counters.copiedChunks).toBe(16);
    await core.write(disk, 64 * KIB, 512, 2);
    await core.write(disk, 127 * KIB, KIB, 3);
    expect(counters).toMatchObject({ reads: 1, copiedChunks: 16, heldWrites: 1 });
    await core.write(disk, 256 * KIB - 512, KIB, 4);
    expect(counters).toMatchObject({ reads: 2, readBytes: 192 * KIB, heldWrites: 2 });
    await expect.poll(() => counters.copiedChunks).toBe(48);
    await core.write(disk, 192 * KIB, 128 * KIB, 5);
    expect(counters).toMatchObject({ reads: 2, heldWrites: 2 });
    await expectImage();
    await core.close();
  });

  test('the last unit of a disk ends with the disk', async () => {
    const { core, disk, counters, expectImage } = await withUnits(200 * KIB + 512);
    await core.write(disk, 200 * KIB, 512, 1);
    expect(counters).toMatchObject({ reads: 1, readBytes: 8 * KIB + 512 });
    await expect.poll(() => counters).toMatchObject({ copiedChunks: 3, zeroChunks: 0 });
    await expectImage();
    await core.close();
  });

  test('after growth nothing beyond the image is saved', async () => {
    const { core, disk, counters, expectImage } = await withUnits(72 * KIB);
    fs.truncateSync(core.path('a'), MIB);
    await disk.resize();
    await core.write(disk, 100 * KIB, 4 * KIB, 1);
    expect(counters).toMatchObject({ reads: 0, heldWrites: 0 });
    await core.write(disk, 70 * KIB, 8 * KIB, 1);
    expect(counters).toMatchObject({ reads: 1, readBytes: 8 * KIB });
    await expect.poll(() => counters).toMatchObject({ copiedChunks: 2, zeroChunks: 0 });
    await expectImage();
    await core.close();
  });

  test('what readers are done with is left out', async () => {
    const { core, disk, image, counters } = await withUnits(MIB);
    image.release(24 * KIB, 8 * KIB);
    await core.write(disk, 0, 4 * KIB, 1);
    expect(counters).toMatchObject({ reads: 2, readBytes: 56 * KIB, releasedChunks: 2 });
    await core.close();
  });

  test('a write waits for memory for its own chunks alone', async () => {
    const { core, disk, counters, expectImage } = await withUnits(MIB, { copyMemoryBytes: 8 * KIB });
    // What lies before it has taken all, and what follows is saved as far as there is room again.
    expect(await core.write(disk, 32 * KIB, 4 * KIB, 1)).toBe(0);
    expect(counters).toMatchObject({ heldWrites: 1, memoryWaits: 1 });
    await expect.poll(() => counters.copiedChunks).toBe(4);
    // As much as it has room for, and then it passes.
    expect(await core.write(disk, 64 * KIB, 4 * KIB, 1)).toBe(0);
    expect(counters).toMatchObject({ heldWrites: 2, memoryWaits: 1 });
    await expect.poll(() => counters.copiedChunks).toBe(6);
    expect(await core.write(disk, 3 * 64 * KIB + 5 * KIB, 50 * KIB, 1)).toBe(0);
    await expectImage();
    await core.close();
  });

  test('units as large as the copy memory: many writes at once all end', async () => {
    const size = 8 * MIB;
    const { core, disk, counters, expectImage } = await withUnits(size, { copyUnitBytes: MIB });
    const writes = Array.from({ length: 32 }, (_, i) => core.write(disk, ((i * 5 * MIB) / 4 + 512) % size, 4 * KIB, i));
    expect(await Promise.all(writes)).toEqual(Array.from({ length: 32 }, () => 0));
    expect(counters.memoryWaits).toBeGreaterThan(0);
    expect(counters.brokenImages).toBe(0);
    await expectImage();
    await core.close();
  });

  test('holes around a small discard are neither read nor stored', async () => {
    const core = await Core.open({ parameters: { copyUnitBytes: MIB } });
    const { disk, tracker } = await sparse(core);
    const before = fs.readFileSync(core.path('a'));
    const [image] = (await core.set.create([tracker], MEMORY)).images;
    const { counters } = tracker.cow;
    await runBio(core.pool, disk, { op: DISCARD, offset: 2 * MIB, length: 4 * KIB });
    expect(counters).toMatchObject({ reads: 0, holeChunks: 256 });
    await core.write(disk, 9 * MIB + 512 * KIB, 4 * KIB, 1);
    expect(counters).toMatchObject({ reads: 1, readBytes: 68 * KIB, holeChunks: 512 - 17 });
    expect((await core.read(image!, 0, SIZE)).data.equals(before)).toBe(true);
    await core.close();
  });

  test('a newer snapshot saves whole units of its own, and the older image reads them', async () => {
    const { core, disk, image, expectImage } = await withUnits(MIB);
    await core.write(disk, 0, 4 * KIB, 1);
    const newer = await core.set.create([image.tracker], MEMORY);
    await core.write(disk, 8 * KIB, 4 * KIB, 2);
    await core.write(disk, 640 * KIB, 4 * KIB, 2);
    await expect.poll(() => newer.images[0]!.area.savedChunks).toBe(32);
    await expectImage();
    await core.set.destroy(newer.id);
    await core.write(disk, 644 * KIB, 4 * KIB, 3);
    await expectImage();
    await core.close();
  });
});

/** A disk that reads as nines, wherever its data is. */
class Nines extends BlockFilter {
  readonly name = 'nines';
  readonly altitude = 1;
  readonly #core: Core;

  constructor(core: Core) {
    super();
    this.#core = core;
  }

  submit(bio: Bio): void {
    if (bio.op !== READ) {
      this.below.submit(bio);
      return;
    }
    this.#core.reactor.arena.bytes.fill(9, bio.at, bio.at + bio.length);
    this.#core.reactor.timer(0, { complete: () => bio.end(0) });
  }

  override async attach(): Promise<void> {}
  override async detach(): Promise<void> {}
  override async ctl(): Promise<unknown> {
    return null;
  }
}
