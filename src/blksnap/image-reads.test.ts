import { expect, test, vi } from 'vitest';
import { Core } from '../../test/core.ts';
import { READ } from '../block/bio.ts';
import type { Bio } from '../block/bio.ts';
import { BlockFilter } from '../block/filter.ts';
import { KIB, MIB } from '../util/units.ts';

/** Counts the reads of the origin, as they come. */
class CountReads extends BlockFilter {
  readonly name = 'count';
  readonly altitude = 1;
  reads = 0;

  submit(bio: Bio): void {
    if (bio.op === READ) this.reads++;
    this.below.submit(bio);
  }

  override async attach(): Promise<void> {}
  override async detach(): Promise<void> {}
  override async ctl(): Promise<unknown> {
    return null;
  }
}

/** Holds the first read that comes; later ones pass it. */
class SlowRead extends BlockFilter {
  readonly name = 'slow';
  readonly altitude = 1;
  held: Bio | null = null;

  submit(bio: Bio): void {
    if (this.held === null && bio.op === READ) this.held = bio;
    else this.below.submit(bio);
  }

  override async attach(): Promise<void> {}
  override async detach(): Promise<void> {}
  override async ctl(): Promise<unknown> {
    return null;
  }
}

test('a write does not wait for a read of an image, and the read shows what was there before it', async () => {
  const core = await Core.open();
  const { disk, tracker } = await core.disk('a', MIB);
  expect(await core.write(disk, 0, 8 * KIB, 1)).toBe(0);
  const snapshot = await core.set.create([tracker], { path: ':memory:', limitBytes: Infinity });
  const slow = new SlowRead();
  await disk.attachFilter(slow);
  let ended = false;
  const read = core.read(snapshot.images[0]!, 0, 8 * KIB).finally(() => (ended = true));
  await expect.poll(() => slow.held).not.toBeNull();
  expect(await core.write(disk, 0, 8 * KIB, 2)).toBe(0);
  expect(await core.write(disk, 4 * KIB, 4 * KIB, 3)).toBe(0);
  expect(ended).toBe(false);
  slow.below.submit(slow.held!);
  expect((await read).data.equals(Buffer.alloc(8 * KIB, 1))).toBe(true);
  await core.set.destroy(snapshot.id);
  await core.close();
});

test('what lies in a row in the storage is one read, wherever it belongs in the image', async () => {
  const core = await Core.open();
  const { disk, tracker } = await core.disk('a', MIB);
  const part = 64 * KIB;
  for (let i = 0; i < 16; i++) expect(await core.write(disk, i * part, part, i + 1)).toBe(0);
  const snapshot = await core.set.create([tracker], { path: core.directory, limitBytes: Infinity });
  const image = snapshot.images[0]!;
  for (let i = 0; i < 16; i += 2) expect(await core.write(disk, i * part, part, 99)).toBe(0);
  const shown = Buffer.concat(Array.from({ length: 16 }, (_, i) => Buffer.alloc(part, i + 1)));
  const scattered = vi.spyOn(core.reactor, 'readScatter');
  const rows = (): number[] => scattered.mock.calls.splice(0).map(([, { count }]) => count);

  // What is on its way into the storage is read from memory.
  const whole = async (): Promise<number[]> => {
    expect((await core.read(image, 0, MIB)).data.equals(shown)).toBe(true);
    return rows();
  };
  await expect.poll(whole).toEqual([8]);
  // From within a chunk to within a chunk.
  const [from, to] = [part - 512, 2 * part + 512];
  expect((await core.read(image, from, to - from)).data.equals(shown.subarray(from, to))).toBe(true);
  expect(rows()).toEqual([2]);
  expect((await core.read(image, 512, MIB - 1024)).data.equals(shown.subarray(512, MIB - 512))).toBe(true);
  expect(rows()).toEqual([8]);
  // What was written to the image lies elsewhere.
  expect(await core.write(image, 4 * part + 4 * KIB, 4 * KIB, 77)).toBe(0);
  shown.fill(77, 4 * part + 4 * KIB, 4 * part + 8 * KIB);
  expect(await whole()).toEqual([3, 6]);
  await core.set.destroy(snapshot.id);
  await core.close();
});

const DISK_BYTES = 4 * MIB;
/** Of a large read while its origin is written. */
const STEPS = DISK_BYTES / (32 * KIB);

for (const driver of ['uring', 'portable'] as const) {
  test(`a large read is in steps, and right, while writes come without end, and whole when none do: ${driver}`, async () => {
    const core = await Core.open({ driver });
    const { disk, tracker } = await core.disk('a', DISK_BYTES);
    expect(await core.write(disk, 0, DISK_BYTES, 1)).toBe(0);
    const snapshot = await core.set.create([tracker], { path: ':memory:', limitBytes: Infinity });
    const image = snapshot.images[0]!;
    const counted = new CountReads();
    await disk.attachFilter(counted);

    // A clock that goes on when it is read: a busy machine makes no pause between two writes.
    let clockMs = 1e9;
    const now = vi.spyOn(core.reactor, 'now').mockImplementation(() => (clockMs += 0.02));
    expect(image.givesWay).toBe(false);
    const atOnce = await core.read(image, 0, DISK_BYTES);
    expect(atOnce.data.equals(Buffer.alloc(DISK_BYTES, 1))).toBe(true);
    expect(counted.reads).toBe(1);

    const timer = vi.spyOn(core.reactor, 'timer');
    let writing = true;
    const write = async (): Promise<void> => {
      // The same few blocks: after the first round, nothing but steps reads the origin.
      for (let i = 0; writing; i++) {
        expect(await core.write(disk, (i % 16) * 4 * KIB, 4 * KIB, 2)).toBe(0);
        // As from a socket: each in a turn of its own.
        await new Promise(setImmediate);
      }
    };
    const writers = [write(), write()];
    await expect.poll(() => counted.reads).toBeGreaterThanOrEqual(17);
    counted.reads = 0;
    timer.mockClear();
    const beside = await core.read(image, 0, DISK_BYTES);
    const rests = timer.mock.calls.length;
    writing = false;
    await Promise.all(writers);
    expect(beside.data.equals(Buffer.alloc(DISK_BYTES, 1))).toBe(true);
    // The first two steps find what was copied.
    expect(counted.reads).toBeGreaterThanOrEqual(STEPS - 4);
    expect(rests).toBeGreaterThan(0);
    timer.mockRestore();
    now.mockRestore();
    await core.set.destroy(snapshot.id);
    await core.close();
  });
}

test('a read that rests goes on when the writes stop with it', async () => {
  const core = await Core.open();
  const { disk, tracker } = await core.disk('a', DISK_BYTES);
  expect(await core.write(disk, 0, DISK_BYTES, 1)).toBe(0);
  const snapshot = await core.set.create([tracker], { path: ':memory:', limitBytes: Infinity });
  const reads = [0, 1, 2, 3].map((i) => core.read(snapshot.images[0]!, i * MIB, MIB));
  expect(await core.write(disk, 0, 4 * KIB, 2)).toBe(0);
  for (const read of reads) expect((await read).data.equals(Buffer.alloc(MIB, 1))).toBe(true);
  await core.set.destroy(snapshot.id);
  await core.close();
});
