/** A snapshot image for a reader that reads everything once, as a backup does: a discard says that the reader is
 *  done with the range. Writes to the origin there are no longer copied, and what was saved of it is freed, so
 *  the storage shrinks as the reader advances. Nothing can be written.
 *
 *  The image itself takes a discard as a write of zeros, as a disk does; hence two devices. */

import { DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, rangeError } from '../block/bio.ts';
import type { Bio } from '../block/bio.ts';
import type { BlockDevice, Capabilities, Extent } from '../block/device.ts';
import { unreachable } from '../util/assert.ts';
import { ERRNO } from '../util/errors.ts';
import type { SnapshotImage } from './image.ts';

/** What its export's name adds to the image's. */
export const READ_ONCE = '+once';

export class ReadOnceImage implements BlockDevice {
  readonly name: string;
  /** Not so: a client would not be allowed to discard. */
  readonly readOnly = false;
  readonly capabilities: Capabilities;
  readonly #image: SnapshotImage;

  constructor(image: SnapshotImage, name: string) {
    this.name = name;
    this.#image = image;
    this.capabilities = { ...image.capabilities, fua: false, writeZeroes: false };
  }

  get size(): number {
    return this.#image.size;
  }
  get logicalBlockSize(): number {
    return this.#image.logicalBlockSize;
  }
  get physicalBlockSize(): number {
    return this.#image.physicalBlockSize;
  }

  get givesWay(): boolean {
    return this.#image.givesWay;
  }

  submit(bio: Bio): void {
    switch (bio.op) {
      case READ:
      case FLUSH:
        this.#image.submit(bio);
        return;
      case DISCARD: {
        const error = rangeError(bio, this.size, false);
        if (error === 0) this.#image.release(bio.offset, bio.length);
        bio.end(error);
        return;
      }
      case WRITE:
      case WRITE_ZEROES:
        bio.end(ERRNO.EPERM);
        return;
      default:
        unreachable(bio.op);
    }
  }

  extents(offset: number, length: number): Promise<Extent[]> {
    return this.#image.extents(offset, length);
  }

  /** The image is not ours to close. */
  async close(): Promise<void> {}
}
