import { expect, test } from 'vitest';
import { Core } from '../../test/core.ts';
import { READ } from '../block/bio.ts';
import type { Bio } from '../block/bio.ts';
import { BlockFilter } from '../block/filter.ts';
import { KIB, MIB } from '../util/units.ts';

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
