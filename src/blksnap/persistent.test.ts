import fs from 'node:fs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ID, PersistentCore, SIZE } from '../../test/persistent-core.ts';
import { MIB } from '../util/units.ts';
import { createJournalFile, openJournalFile } from './journal-place.ts';

let world: PersistentCore;

beforeEach(async () => {
  world = await PersistentCore.open();
});
afterEach(() => world.close());

async function refusal(): Promise<{ code: string; message: string }> {
  const { tracker } = await world.core.disk('a', SIZE);
  return await world.restore([tracker]).then(
    () => ({ code: '', message: 'it came back' }),
    (error: unknown) => error as { code: string; message: string },
  );
}

describe('a persistent snapshot', () => {
  test('shows after a restart what it showed before, and goes on', async () => {
    const before = await world.core.disk('a', SIZE);
    const old = fs.readFileSync(before.file);
    const number = (await world.take([before.tracker])).images[0]!.changeNumber;
    expect(await world.core.write(before.disk, 8192, 12_288, 1)).toBe(0);
    expect(await world.core.write(before.disk, MIB - 512, 1024, 2)).toBe(0);
    await world.restart();

    const after = await world.core.disk('a', SIZE);
    const back = await world.restore([after.tracker]);
    const image = back.images[0]!;
    expect(image.changeNumber).toBe(number);
    expect(back.storage.pieces[0]!.portionBytes).toBe(SIZE);
    expect((await world.core.read(image, 0, SIZE)).data.equals(old)).toBe(true);
    expect(await world.core.write(after.disk, 0, SIZE, 3)).toBe(0);
    expect((await world.core.read(image, 0, SIZE)).data.equals(old)).toBe(true);
    await world.restart();

    const last = await world.core.disk('a', SIZE);
    const again = (await world.restore([last.tracker])).images[0]!;
    expect((await world.core.read(again, 0, SIZE)).data.equals(old)).toBe(true);
    await world.core.set.destroy(ID);
    expect(fs.readdirSync(world.core.path('snapshots'))).toEqual([]);
    expect(fs.readdirSync(world.core.directory).filter((name) => name.endsWith('.diff'))).toEqual([]);
  });

  test('has images that cannot be written, and keeps what a reader says it is done with', async () => {
    const { disk, tracker, file } = await world.core.disk('a', SIZE);
    const old = fs.readFileSync(file);
    const image = (await world.take([tracker])).images[0]!;
    await world.core.write(disk, 0, MIB, 1);
    expect(image.readOnly).toBe(true);
    expect(await world.core.write(image, 0, 4096, 4)).toBe(1);
    image.release(0, SIZE);
    expect((await world.core.read(image, 0, SIZE)).data.equals(old)).toBe(true);
  });

  test('covers several disks, more places and a higher limit', async () => {
    const [a, b] = [await world.core.disk('a', SIZE), await world.core.disk('b', SIZE)];
    const old = [fs.readFileSync(a.file), fs.readFileSync(b.file)];
    const { id } = await world.core.set.create(
      [a.tracker, b.tracker],
      { path: world.core.directory, limitBytes: 256 * 1024 },
      { id: ID, persistent: { open: () => createJournalFile(world.journal()), memo: null } },
    );
    await world.core.set.append(id, { path: world.core.directory, limitBytes: MIB });
    await world.core.set.append(id, { path: world.core.path('third'), limitBytes: MIB });
    await world.core.set.raiseLimit(id, 64 * MIB);
    for (const { disk } of [a, b]) await world.core.write(disk, 4096, 2 * MIB, 9);
    await world.restart();
    const trackers = [(await world.core.disk('a', SIZE)).tracker, (await world.core.disk('b', SIZE)).tracker];
    const { images, storage } = await world.restore(trackers);
    expect(storage.limitBytes).toBe(64 * MIB);
    expect(storage.pieces.length).toBe(3);
    for (const [i, image] of images.entries())
      expect((await world.core.read(image, 0, SIZE)).data.equals(old[i]!)).toBe(true);
  });

  test('tells after a restart, too, what was marked dirty', async () => {
    const { tracker } = await world.core.disk('a', SIZE);
    const first = await world.core.set.create([tracker], { path: ':memory:', limitBytes: MIB });
    const { changeNumber } = first.images[0]!;
    await world.take([tracker]);
    await tracker.markDirty([{ offset: 2 * MIB, length: 512 }]);
    await world.restart();
    const image = (await world.restore([(await world.core.disk('a', SIZE)).tracker])).images[0]!;
    const changed = image.changedSince(changeNumber, 0, SIZE).filter((range) => range.changed);
    expect(changed).toEqual([{ length: 65_536, changed: true }]);
  });

  test('tells what a copy asked for that found no room', async () => {
    const { disk, tracker } = await world.core.disk('a', SIZE);
    // Beside four copies, the label.
    await world.take([tracker], { limitBytes: 4 * 65_536 + 4096 });
    for (let at = 0; at < MIB; at += 65_536) expect(await world.core.write(disk, at, 65_536, 1)).toBe(0);
    const told = world.core.events.map(({ code, requestedBytes }) => [code, requestedBytes]);
    expect(told).toEqual([
      ['lowSpace', 65_536],
      ['noSpace', 65_536],
      ['corrupted', null],
    ]);
  });

  test('comes back with the image lost that was lost, and goes on with the other', async () => {
    const [a, b] = [await world.core.disk('a', SIZE), await world.core.disk('b', SIZE)];
    const old = fs.readFileSync(b.file);
    await world.take([a.tracker, b.tracker]);
    a.tracker.cow.break(a.tracker.cow.areas.all[0]!, 28, false);
    await world.core.write(a.disk, 0, MIB, 1);
    await world.core.write(b.disk, 0, MIB, 1);
    await world.restart();
    const trackers = [(await world.core.disk('a', SIZE)).tracker, (await world.core.disk('b', SIZE)).tracker];
    const { images } = await world.restore(trackers);
    expect(images.map(({ corrupted }) => corrupted)).toEqual([28, 0]);
    expect((await world.core.read(images[0]!, 0, 4096)).status).toBe(5);
    expect((await world.core.read(images[1]!, 0, SIZE)).data.equals(old)).toBe(true);
  });
});

describe('a place for a persistent snapshot', () => {
  test.each([
    [':memory:', /memory ends with the daemon/],
    ['/dev/shm', /tmpfs, which ends with the machine/],
  ])('is not %s', async (storage, reason) => {
    const { tracker } = await world.core.disk('a', SIZE);
    await expect(world.take([tracker], { storage })).rejects.toMatchObject({ code: 'EINVAL', message: reason });
    expect(fs.existsSync(world.core.path('snapshots'))).toBe(false);
  });

  test('is nothing of a disk whose change history is in memory', async () => {
    const { tracker } = await world.core.disk('a', SIZE, { mapPath: null });
    await expect(world.take([tracker])).rejects.toMatchObject({ code: 'EOPNOTSUPP' });
  });
});

describe('a persistent snapshot is refused', () => {
  test('when the disk was written meanwhile', async () => {
    await world.laidDown();
    const fd = fs.openSync(world.core.path('a'), 'r+');
    fs.writeSync(fd, 'x', SIZE - 1);
    fs.closeSync(fd);
    expect(await refusal()).toMatchObject({
      code: 'ESTALE',
      message: expect.stringMatching(/written while it was not attached/),
    });
  });

  test('when the disk was written through a tracker that made no copies', async () => {
    await world.laidDown();
    const { disk } = await world.core.disk('a', SIZE);
    await world.core.write(disk, 0, 512, 1);
    await world.restart();
    expect(await refusal()).toMatchObject({ code: 'ESTALE', message: expect.stringMatching(/no copies of it/) });
  });

  test('when it was only read meanwhile it comes back all the same', async () => {
    const old = await world.laidDown();
    const { disk } = await world.core.disk('a', SIZE);
    await world.core.read(disk, 0, SIZE);
    await world.restart();
    const { tracker } = await world.core.disk('a', SIZE);
    expect((await world.core.read((await world.restore([tracker])).images[0]!, 0, SIZE)).data.equals(old)).toBe(true);
  });

  test.each<[string, (journal: string, storage: string) => void, RegExp]>([
    [
      'its journal is cut',
      (journal) => fs.truncateSync(journal, fs.statSync(journal).size - 100),
      /journal is damaged/,
    ],
    ['its journal is changed', (journal) => flip(journal, fs.statSync(journal).size - 30), /journal is damaged/],
    ['its journal is changed at the front', (journal) => flip(journal, 60), /does not begin with a plan/],
    ['its storage is gone', (_journal, storage) => fs.rmSync(storage), /no such file/],
    ['its storage is cut', (_journal, storage) => fs.truncateSync(storage, 8192), /was cut/],
    ['its storage is another file', (_journal, storage) => flip(storage, 20), /does not begin with its label/],
  ])('when %s', async (_what, damage, reason) => {
    await world.laidDown();
    damage(world.journal(), world.core.path(`blksnap-${ID}.diff`));
    expect((await refusal()).message).toMatch(reason);
  });

  test('when its journal is older than it should be', async () => {
    const { disk, tracker } = await world.core.disk('a', SIZE);
    await world.take([tracker]);
    fs.copyFileSync(world.journal(), world.core.path('copy'));
    await world.core.write(disk, 0, 4096, 1);
    await world.restart();
    fs.copyFileSync(world.core.path('copy'), world.journal());
    expect((await refusal()).message).toMatch(/journal is damaged: \d+ frames are whole, \d+ were written/);
  });

  test('when its disk is not there', async () => {
    await world.laidDown();
    await expect(world.restore([])).rejects.toMatchObject({ code: 'ESTALE' });
  });
});

test('a frame that was cut off at the end, and never counted, is passed over', async () => {
  const old = await world.laidDown();
  fs.appendFileSync(world.journal(), Buffer.from('BKJ1 and the rest of a frame that a killed process had begun'));
  const { disk, tracker } = await world.core.disk('a', SIZE);
  const image = (await world.restore([tracker])).images[0]!;
  await world.core.write(disk, 0, SIZE, 5);
  expect((await world.core.read(image, 0, SIZE)).data.equals(old)).toBe(true);
  await world.restart();
  const again = (await world.restore([(await world.core.disk('a', SIZE)).tracker])).images[0]!;
  expect((await world.core.read(again, 0, SIZE)).data.equals(old)).toBe(true);
});

test('a journal whose take did not come to its end is removed, with its storage', async () => {
  const { tracker } = await world.core.disk('a', SIZE);
  await world.take([tracker]);
  await world.restart();
  const plan = fs.readFileSync(world.journal());
  fs.truncateSync(world.journal(), 24 + plan.readUInt32LE(12));
  const { tracker: after } = await world.core.disk('a', SIZE);
  expect(await world.core.set.restore({ place: openJournalFile(world.journal()), tracker: () => after })).toBeNull();
  expect(fs.readdirSync(world.core.directory).sort()).toEqual(['a', 'a.map', 'snapshots']);
  expect(fs.readdirSync(world.core.path('snapshots'))).toEqual([]);
});

test('one that is refused can be given up, and takes nothing along that is not its own', async () => {
  await world.laidDown();
  const storage = world.core.path(`blksnap-${ID}.diff`);
  flip(storage, 20);
  await world.core.set.discard({ place: openJournalFile(world.journal()) });
  expect([fs.existsSync(storage), fs.existsSync(world.journal())]).toEqual([true, false]);
});

function flip(file: string, offset: number): void {
  const fd = fs.openSync(file, 'r+');
  const byte = Buffer.alloc(1);
  fs.readSync(fd, byte, 0, 1, offset);
  fs.writeSync(fd, Buffer.from([byte[0]! ^ 0x55]), 0, 1, offset);
  fs.closeSync(fd);
}
