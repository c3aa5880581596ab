/** A filter that lets every block of a disk be written once, and never changed.
 *
 *      blksnap daemon --filter-module examples/write-once.mjs
 *      blksnap filter attach archive write-once
 *
 *  Its memory is the disk itself: at attach, whatever is not known to be zeros counts as written. So the guard is
 *  the same after a restart. A write that failed leaves its blocks closed: nobody knows what they hold. */

import { BlksnapError, BlockFilter, ERRNO, changesData } from 'blksnap';

const BLOCK = 4096;

export class WriteOnce extends BlockFilter {
  name = 'write-once';
  altitude = 400;
  /** One byte per block: 1 when it was written. */
  #written = new Uint8Array(0);
  #refused = 0;

  /** @override @param {import('blksnap').Bio} bio */
  submit(bio) {
    if (changesData(bio.op)) {
      const first = Math.floor(bio.offset / BLOCK);
      const end = Math.ceil((bio.offset + bio.length) / BLOCK);
      for (let block = first; block < end; block++) {
        if (this.#written[block] === 1) {
          this.#refused++;
          bio.end(ERRNO.EPERM);
          return;
        }
      }
      this.#written.fill(1, first, end);
    }
    this.below.submit(bio);
  }

  /** @override @param {import('blksnap').Disk} disk */
  async attach(disk) {
    this.#written = new Uint8Array(Math.ceil(disk.size / BLOCK));
    for (let offset = 0; offset < disk.size;) {
      for (const { length, zero } of await disk.extents(offset, disk.size - offset)) {
        if (!zero) this.#written.fill(1, Math.floor(offset / BLOCK), Math.ceil((offset + length) / BLOCK));
        offset += length;
      }
    }
  }

  /** @override */
  async detach() {}

  /** @override @param {string} command */
  async ctl(command) {
    if (command !== 'stats')
      throw new BlksnapError('EINVAL', `Filter "${this.name}" has no command "${command}": want stats`);
    const writtenBlocks = this.#written.reduce((sum, one) => sum + one, 0);
    return { blockBytes: BLOCK, writtenBlocks, refusedBios: this.#refused };
  }
}

/** @param {import('blksnap').FilterRegistry} filters */
export function register(filters) {
  filters.register('write-once', () => new WriteOnce());
}
