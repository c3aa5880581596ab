import { afterEach, beforeEach, expect, test } from 'vitest';
import type { Bio } from '../block/bio.ts';
import { BioPool, READ } from '../block/bio.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { openReactor } from '../io/open.ts';
import type { Reactor } from '../io/reactor.ts';
import { MIB } from '../util/units.ts';
import { copyRanges } from './copy.ts';
import type { CopySink } from './copy.ts';
import type { ByteRange } from './ranges.ts';

const GRANULE = 65_536;
const COUNT = 100;
/** Every third granule. */
const RANGES = Array.from({ length: COUNT }, (_, i) => ({ offset: 3 * i * GRANULE, length: GRANULE }));

let reactor: Reactor;
beforeEach(async () => {
  reactor = await openReactor({ driver: 'portable', arenaBytes: 16 * MIB });
});
afterEach(() => reactor.close());

/** Each range has a byte of its own. The read at `broken` fails. */
class Source extends MemoryDevice {
  readonly #broken: number;
  #reading = 0;
  mostReading = 0;
  bytesRead = 0;

  constructor(broken: number) {
    super('disk', 3 * COUNT * GRANULE, reactor.arena);
    this.#broken = broken;
    for (const [i, { offset, length }] of RANGES.entries()) this.bytes.fill(i + 1, offset, offset + length);
  }

  override submit(bio: Bio): void {
    expect(bio.op).toBe(READ);
    this.#reading++;
    this.bytesRead += bio.length;
    this.mostReading = Math.max(this.mostReading, this.#reading);
    setImmediate(() => {
      this.#reading--;
      if (bio.offset === this.#broken) bio.end(5);
      else super.submit(bio);
    });
  }
}

/** Stores later pieces sooner. */
class Sink implements CopySink {
  readonly stored = new Map<number, number>();
  readonly offsets: number[] = [];

  async write(offset: number, at: number, length: number): Promise<void> {
    this.offsets.push(offset);
    await new Promise((resolve) => void setTimeout(resolve, 50 - offset / GRANULE / 7));
    const data = reactor.arena.bytes.subarray(at, at + length);
    for (let i = 0; i < length; i += GRANULE) this.stored.set(offset + i, data[i + GRANULE - 1]!);
  }

  async zero(): Promise<void> {}
}

async function copy(broken = -1): Promise<{ source: Source; sink: Sink; done: ByteRange[]; error: unknown }> {
  const source = new Source(broken);
  const sink = new Sink();
  const done: ByteRange[] = [];
  const early: number[] = [];
  const onDone = async (range: ByteRange): Promise<void> => {
    if (!sink.stored.has(range.offset)) early.push(range.offset);
    done.push(range);
  };
  const options = { reactor, pool: new BioPool(), ranges: RANGES, granule: GRANULE, onDone };
  const error: unknown = await copyRanges(source, sink, options).then(
    () => null,
    (cause: unknown) => cause,
  );
  expect(early).toEqual([]);
  return { source, sink, done, error };
}

test('small ranges are read many at a time, stored in order, and told to be done in order when they are stored', async () => {
  const { source, sink, done, error } = await copy();
  expect(error).toBeNull();
  expect(source.mostReading).toBeGreaterThanOrEqual(COUNT - 16);
  expect(source.bytesRead).toBe(COUNT * GRANULE);
  expect(sink.offsets).toEqual(RANGES.map(({ offset }) => offset));
  expect(RANGES.map(({ offset }) => sink.stored.get(offset))).toEqual(RANGES.map((_, i) => i + 1));
  expect(done).toEqual(RANGES);
});

test('when a read fails nothing from its piece on is told to be done, and all memory is given back', async () => {
  const lent = reactor.arena.lentBytes;
  const { done, error } = await copy(RANGES[40]!.offset);
  expect(error).toMatchObject({ code: 'EIO' });
  expect(done.length).toBeLessThanOrEqual(32);
  expect(done).toEqual(RANGES.slice(0, done.length));
  expect(reactor.arena.lentBytes).toBe(lent);
});
