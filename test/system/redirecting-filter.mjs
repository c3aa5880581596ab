/** A filter of somebody else's that redirects: reads and writes that lie in the first `length` bytes of the disk go to `file`.
 *  Below the tracker, so that changes are tracked wherever they go.
 *
 *      blksnap filter attach vm elsewhere --options '{"file": "/srv/start.img", "length": 1048576}' */

import fs from 'node:fs';
import { BlksnapError, BlockFilter, ERRNO, FLUSH, READ, WRITE } from 'blksnap';

class Elsewhere extends BlockFilter {
  name = 'elsewhere';
  altitude = 50;
  #fd = -1;

  /**
   * @param {{ file: string, length: number }} options
   * @param {import('blksnap').FilterHost} host
   */
  constructor(options, host) {
    super();
    this.options = options;
    this.reactor = host.reactor;
  }

  /** @override @param {import('blksnap').Bio} bio */
  submit(bio) {
    const inside = bio.offset + bio.length <= this.options.length;
    if (bio.op === FLUSH || bio.offset >= this.options.length) this.below.submit(bio);
    else if (!inside || (bio.op !== READ && bio.op !== WRITE)) bio.end(ERRNO.EOPNOTSUPP);
    else {
      bio.driver = this;
      if (bio.op === READ) this.reactor.read(this.#fd, bio.at, bio.length, bio.offset, bio);
      else this.reactor.write(this.#fd, bio.at, bio.length, bio.offset, true, bio);
    }
  }

  /** @param {import('blksnap').Bio} bio @param {number} result */
  bioProgress(bio, result) {
    bio.end(result === bio.length ? 0 : result < 0 ? -result : ERRNO.EIO);
  }

  /** @override @param {number} offset @param {number} length */
  async extents(offset, length) {
    return [{ length, hole: false, zero: false }];
  }

  /** @override */
  async attach() {
    this.#fd = fs.openSync(this.options.file, 'r+');
  }

  /** @override */
  async detach() {
    fs.closeSync(this.#fd);
  }

  /** @override @param {string} command */
  async ctl(command) {
    throw new BlksnapError('EINVAL', `Filter "${this.name}" has no command "${command}"`);
  }
}

/**
 * @param {import('blksnap').FilterRegistry} filters
 * @param {import('blksnap').FilterHost} host
 */
export function register(filters, host) {
  filters.register('elsewhere', (options) => new Elsewhere(/** @type {any} */ (options), host));
}
