import { afterEach, beforeEach, expect, test } from 'vitest';
import { BioPool } from '../block/bio.ts';
import type { Bio } from '../block/bio.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { openReactor } from '../io/open.ts';
import type { Reactor } from '../io/reactor.ts';
import { MIB } from '../util/units.ts';
import { openNbdSource } from './nbd-source.ts';
import type { NbdImage, NbdSource, NbdSourceOptions } from './nbd-source.ts';

const SIZE = 8 * MIB;
type Status = ReadonlyArray<{ length: number; flags: number }>;

let reactor: Reactor;
let open: number;
beforeEach(async () => {
  reactor = await openReactor({ driver: 'portable', arenaBytes: MIB });
  open = 0;
});
afterEach(() => reactor.close());

/** An export in memory that has one more context than the usual; counts how many connections are open. */
class MemoryImage extends MemoryDevice implements NbdImage {
  readonly contexts: readonly string[];
  readonly #statuses: Status;

  constructor(size: number, asked: readonly string[], served: string, statuses: Status) {
    super('image', size, reactor.arena, { readOnly: true });
    open++;
    this.contexts = asked.filter((name) => name === 'base:allocation' || name === served);
    this.#statuses = statuses;
  }

  /** As a server may: one run at a time. */
  async blockStatus(_context: string, offset: number, length: number): Promise<Status> {
    let start = 0;
    for (const run of this.#statuses) {
      const end = start + run.length;
      if (offset < end) return [{ length: Math.min(end - offset, length), flags: run.flags }];
      start = end;
    }
    return [];
  }

  override async close(): Promise<void> {
    open--;
  }
}

function sourceOf(served: string, statuses: Status, more: Partial<NbdSourceOptions> = {}): Promise<NbdSource> {
  const state = { disk: 'vda', identity: null, generationId: 'gen-1', changeNumber: 9 };
  const connect = (asked: readonly string[]): Promise<NbdImage> =>
    Promise.resolve(new MemoryImage(SIZE, asked, served, statuses));
  return openNbdSource({ ...state, connect, ...more });
}

test('dirty runs are the changes since the number asked for', async () => {
  const source = await sourceOf('blksnap:changed:gen-1:4', [
    { length: 3 * MIB, flags: 0 },
    { length: MIB, flags: 1 },
    { length: 2 * MIB, flags: 0 },
    { length: 2 * MIB, flags: 1 },
  ]);
  expect(await source.changedSince(4)).toEqual([
    { offset: 3 * MIB, length: MIB },
    { offset: 6 * MIB, length: 2 * MIB },
  ]);
  // The server knows nothing of another number: nor do we.
  expect(await source.changedSince(5)).toBeNull();
  await source.close();
  expect(open).toBe(0);
});

test('what is done is discarded, neighbours together, and the rest at the end', async () => {
  const pool = new BioPool();
  const discards: Array<readonly [offset: number, length: number]> = [];
  class Discarded extends MemoryImage {
    override readonly readOnly = false;
    override readonly capabilities = {
      flush: true,
      fua: true,
      discard: true,
      writeZeroes: true,
      fastZero: false,
      rotational: false,
    };
    override submit(bio: Bio): void {
      discards.push([bio.offset / MIB, bio.length / MIB]);
      bio.end(0);
    }
  }
  const connect = (): Promise<NbdImage> => Promise.resolve(new Discarded(64 * MIB, [], '', []));
  const source = await sourceOf('', [], { connect, discardsWith: pool });
  for (const [offset, length] of [
    [0, 8],
    [8, 8],
    [16, 1],
    [20, 1],
    [21, 1],
  ] as const)
    await source.done!({ offset: offset * MIB, length: length * MIB });
  expect(discards).toEqual([
    [0, 16],
    [16, 1],
  ]);
  await source.close();
  expect(discards).toEqual([
    [0, 16],
    [16, 1],
    [20, 2],
  ]);
});

test('a QEMU bitmap is asked by its name', async () => {
  const source = await sourceOf('qemu:dirty-bitmap:b0', [{ length: SIZE, flags: 1 }], { dirtyBitmap: 'b0' });
  expect(await source.changedSince(4)).toEqual([{ offset: 0, length: SIZE }]);
  await source.close();
});

test('a server that says nothing of a part, or changed its size, is not believed', async () => {
  const silent = await sourceOf('blksnap:changed:gen-1:4', [{ length: SIZE / 2, flags: 0 }]);
  await expect(silent.changedSince(4)).rejects.toMatchObject({ code: 'EPROTO' });
  await silent.close();
  let size = SIZE;
  const served = 'blksnap:changed:gen-1:4';
  const connect = (asked: readonly string[]): Promise<NbdImage> =>
    Promise.resolve(new MemoryImage(size, asked, served, []));
  const resized = await sourceOf(served, [], { connect });
  size += 512;
  await expect(resized.changedSince(4)).rejects.toMatchObject({ code: 'ESTALE' });
  await resized.close();
  expect(open).toBe(0);
});
