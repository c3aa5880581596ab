/** Asks a snapshot image over NBD what it tells about its blocks, and compares: holes are zeros, and what changed since any
 *  earlier snapshot of its history is told as changed, by both names of the context. */

import { BASE_ALLOCATION, STATE_ZERO } from '../../src/nbd/protocol.ts';
import type { Prng } from '../../src/util/prng.ts';
import { SimClient, drawStyle } from './client.ts';
import type { SimImage, World } from './world.ts';

const DIRTY = 1;

interface Extent {
  readonly length: number;
  readonly flags: number;
}

export async function askStatus(world: World, random: Prng): Promise<void> {
  const images = world.images.filter(
    ({ image, busy, released }) => image.corrupted === 0 && busy === 0 && released.size === 0,
  );
  const held = images[random.below(Math.max(1, images.length))];
  if (held === undefined) return;
  const { clock } = world.machine;
  const { generationId, image } = held;
  const older = [...world.images, ...world.past(held.owner)].filter(
    (other) =>
      other.generationId === generationId &&
      other.changeNumber < held.changeNumber &&
      (!('owner' in other) || other.owner === held.owner),
  );
  const since = older[random.below(Math.max(1, older.length))];
  const client = await SimClient.start(world);
  clock.calm++;
  const names = since === undefined ? [] : [`blksnap:changed:${generationId}:`, 'qemu:dirty-bitmap:since-'];
  const contexts = names.map((name) => `${name}${since!.changeNumber}`);
  const device = await clock.until(
    client.connect(image.name, { contexts: [BASE_ALLOCATION, ...contexts], newestStyle: drawStyle(random, true) }),
  );
  for (const context of device.contexts) {
    const told: Extent[] = [];
    for (let at = 0; at < image.size;) {
      const length = 1 + random.below(image.size - at);
      const extents = await clock.until(device.blockStatus(context, at, length));
      told.push(...extents);
      at += extents.reduce((sum, extent) => sum + extent.length, 0);
    }
    if (context === BASE_ALLOCATION) expectZeros(held, told);
    else expectTold(held, since!.content, told, context);
  }
  if (device.contexts.length !== 1 + contexts.length) throw new Error(`${image.name} lacks one of ${contexts.join()}`);
  await clock.until(device.close());
  await clock.until(client.close());
  clock.calm--;
}

function forEach(told: readonly Extent[], visit: (from: number, to: number, flags: number) => void): void {
  let at = 0;
  for (const { length, flags } of told) {
    visit(at, at + length, flags);
    at += length;
  }
}

function expectZeros({ image, content }: SimImage, told: readonly Extent[]): void {
  forEach(told, (from, to, flags) => {
    const isWrong = (flags & STATE_ZERO) !== 0 && content.subarray(from, to).some((byte) => byte !== 0);
    if (isWrong) throw new Error(`${image.name}: data between ${from} and ${to} is told as zeros`);
  });
}

function expectTold({ image, content }: SimImage, before: Uint8Array, told: readonly Extent[], context: string): void {
  forEach(told, (from, to, flags) => {
    const differs = Buffer.compare(before.subarray(from, to), content.subarray(from, to)) !== 0;
    if (differs && (flags & DIRTY) === 0)
      throw new Error(`${image.name}: ${context} says nothing of a change between ${from} and ${to}`);
  });
}
