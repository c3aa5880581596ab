/** A backup's source behind an NBD export: our own snapshot images, or another server's.
 *
 *  Data and holes come over one connection. What changed comes over a second one, because metadata contexts are
 *  chosen before the first request, and which one is wanted is known only when the backup is planned. */

import { DISCARD, runBio } from '../block/bio.ts';
import type { BioPool } from '../block/bio.ts';
import type { BlockDevice } from '../block/device.ts';
import { BlksnapError } from '../util/errors.ts';
import { MIB } from '../util/units.ts';
import type { ByteRange } from './ranges.ts';
import type { BackupSource } from './source.ts';

/** In a reply to `blksnap:changed:…` and `qemu:dirty-bitmap:…`. */
const STATE_DIRTY = 1;
/** Asked about, or discarded, at once; NBD lengths are 32 bits wide. */
const STATUS_BYTES = 2 ** 30;
/** Enough for one discard; what was saved of so much may stay stored a little longer. */
const DISCARD_BYTES = 16 * MIB;

/** What a backup asks of an NBD client, beyond what every device does. */
export interface NbdImage extends BlockDevice {
  /** Names of the metadata contexts that the server agreed to. */
  readonly contexts: readonly string[];
  blockStatus(
    context: string,
    offset: number,
    length: number,
  ): Promise<ReadonlyArray<{ length: number; flags: number }>>;
}

export interface NbdSourceOptions extends Pick<BackupSource, 'disk' | 'identity' | 'generationId' | 'changeNumber'> {
  /** Connects to the export, asking for these metadata contexts; the server may not have them. */
  readonly connect: (contexts: readonly string[]) => Promise<NbdImage>;
  /** The QEMU bitmap that holds what changed, for servers that keep one; the caller vouches that it began at
   *  the change number that will be asked for, or before. Default: blksnap's own context. */
  readonly dirtyBitmap?: string;
  /** The export is to be read once: it is told by discards, made with bios of this pool, what will not be read (again). */
  readonly discardsWith?: BioPool | undefined;
}

export interface NbdSource extends BackupSource {
  close(): Promise<void>;
}

/** Errors: those of `connect`. */
export async function openNbdSource(options: NbdSourceOptions): Promise<NbdSource> {
  const { disk, identity, generationId, changeNumber } = options;
  const device = await options.connect(['base:allocation']);
  const discards = discardsOf(device, options.discardsWith);
  return {
    disk,
    identity,
    generationId,
    changeNumber,
    device,
    done: discards === null ? undefined : (range) => discards.add(range),
    changedSince: (since) => changedSince(options, { since, size: device.size }),
    close: async () => {
      await discards?.flush();
      await device.close();
    },
  };
}

/** Tells an image of ranges that will not be read (again), neighbours together. */
class Discards {
  readonly #device: NbdImage;
  readonly #pool: BioPool;
  #gathered: ByteRange = { offset: 0, length: 0 };

  constructor(device: NbdImage, pool: BioPool) {
    this.#device = device;
    this.#pool = pool;
  }

  async add(range: ByteRange): Promise<void> {
    const { offset, length } = this.#gathered;
    if (offset + length !== range.offset) {
      const flushing = this.flush();
      this.#gathered = range;
      await flushing;
      return;
    }
    this.#gathered = { offset, length: length + range.length };
    if (this.#gathered.length >= DISCARD_BYTES) await this.flush();
  }

  async flush(): Promise<void> {
    const { offset, length } = this.#gathered;
    const end = offset + length;
    this.#gathered = { offset: end, length: 0 };
    // Whatever the answer is: the backup is as good without.
    for (let at = offset; at < end; at += STATUS_BYTES) {
      await runBio(this.#pool, this.#device, { op: DISCARD, offset: at, length: Math.min(STATUS_BYTES, end - at) });
    }
  }
}

function discardsOf(device: NbdImage, pool: BioPool | undefined): Discards | null {
  if (pool === undefined || !device.capabilities.discard || device.readOnly) return null;
  return new Discards(device, pool);
}

async function changedSince(
  options: NbdSourceOptions,
  { since, size }: { readonly since: number; readonly size: number },
): Promise<ByteRange[] | null> {
  const context =
    options.dirtyBitmap === undefined
      ? `blksnap:changed:${options.generationId}:${since}`
      : `qemu:dirty-bitmap:${options.dirtyBitmap}`;
  const image = await options.connect([context]);
  try {
    if (!image.contexts.includes(context)) return null;
    if (image.size !== size)
      throw new BlksnapError(
        'ESTALE',
        `Cannot tell what changed: the export's size went from ${size} to ${image.size} bytes`,
      );
    return await dirtyRanges(image, context);
  } finally {
    await image.close();
  }
}

async function dirtyRanges(image: NbdImage, context: string): Promise<ByteRange[]> {
  const ranges: ByteRange[] = [];
  for (let offset = 0; offset < image.size;) {
    const start = offset;
    for (const { length, flags } of await image.blockStatus(
      context,
      offset,
      Math.min(STATUS_BYTES, image.size - offset),
    )) {
      if ((flags & STATE_DIRTY) !== 0) ranges.push({ offset, length });
      offset += length;
    }
    if (offset === start)
      throw new BlksnapError(
        'EPROTO',
        `Cannot tell what changed: the server says nothing of "${context}" at offset ${offset}`,
      );
  }
  return ranges;
}
