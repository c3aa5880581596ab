/** A filter that limits how many bytes per second pass to a disk, in the order in which they came.
 *
 *      blksnap daemon --filter-module examples/rate-limiter.mjs
 *      blksnap filter attach vm rate-limiter --options '{"bytesPerSecond": 10000000}'
 *      blksnap filter ctl vm rate-limiter rate --payload '{"bytesPerSecond": 20000000}'
 *
 *  A credit grows with time up to one burst, and every bio that passes takes its length off it,
 *  also below zero; while the credit is used up, bios wait in a queue. Flushes wait in it too:
 *  nothing overtakes. */

import { BioQueue, BlksnapError, BlockFilter, FLUSH } from 'blksnap';

const DEFAULT_BURST_MS = 100;

/** @param {unknown} options */
function rateOf(options) {
  const { bytesPerSecond } = /** @type {{ bytesPerSecond?: unknown }} */ (options ?? {});
  if (typeof bytesPerSecond !== 'number' || !(bytesPerSecond > 0)) {
    throw new BlksnapError(
      'EINVAL',
      `Cannot limit the rate to ${String(bytesPerSecond)}: want bytesPerSecond, above 0`,
    );
  }
  return bytesPerSecond;
}

export class RateLimiter extends BlockFilter {
  name = 'rate-limiter';
  altitude = 300;
  #held = new BioQueue();
  #credit = 0;
  #lastMs = 0;
  #timer = 0;
  #heldBios = 0;

  /**
   * @param {unknown} options
   * @param {import('blksnap').FilterHost} host
   */
  constructor(options, host) {
    super();
    this.reactor = host.reactor;
    this.bytesPerSecond = rateOf(options);
  }

  /** @override @param {import('blksnap').Bio} bio */
  submit(bio) {
    if (this.#held.length === 0 && this.#pay(bio)) {
      this.below.submit(bio);
      return;
    }
    this.#held.push(bio);
    this.#heldBios++;
    if (this.#timer === 0) this.#sleep();
  }

  /** Whether the bio may pass now. @param {import('blksnap').Bio} bio */
  #pay(bio) {
    const now = this.reactor.now();
    const burst = (this.bytesPerSecond * DEFAULT_BURST_MS) / 1000;
    this.#credit = Math.min(burst, this.#credit + ((now - this.#lastMs) * this.bytesPerSecond) / 1000);
    this.#lastMs = now;
    if (this.#credit <= 0) return false;
    if (bio.op !== FLUSH) this.#credit -= bio.length;
    return true;
  }

  #sleep() {
    const delayMs = Math.max(1, Math.ceil((-this.#credit * 1000) / this.bytesPerSecond));
    this.#timer = this.reactor.timer(delayMs, this);
  }

  /** The timer's end. */
  complete() {
    for (let bio = this.#held.peek(); bio !== null && this.#pay(bio); bio = this.#held.peek()) {
      // Out of the queue first: the bio may end, and its owner submit again, before `submit` returns.
      this.#held.shift();
      this.below.submit(bio);
    }
    // Not before: what is submitted from inside the loop must not start a second timer.
    this.#timer = 0;
    if (this.#held.length > 0) this.#sleep();
  }

  /** @override */
  async attach() {
    this.#lastMs = this.reactor.now();
    this.#credit = (this.bytesPerSecond * DEFAULT_BURST_MS) / 1000;
  }

  /** The disk has seen to it that no bio is held any more, and so no timer runs. @override */
  async detach() {}

  /** @override @param {string} command @param {unknown} payload */
  async ctl(command, payload) {
    switch (command) {
      case 'rate':
        this.bytesPerSecond = rateOf(payload);
        // Those that wait were told to wait by the other rate.
        if (this.#timer !== 0) {
          this.reactor.cancelTimer(this.#timer);
          this.#sleep();
        }
        return null;
      case 'stats':
        return { bytesPerSecond: this.bytesPerSecond, heldBios: this.#heldBios, waiting: this.#held.length };
      default:
        throw new BlksnapError('EINVAL', `Filter "${this.name}" has no command "${command}": want rate or stats`);
    }
  }
}

/**
 * @param {import('blksnap').FilterRegistry} filters
 * @param {import('blksnap').FilterHost} host
 */
export function register(filters, host) {
  filters.register('rate-limiter', (options) => new RateLimiter(options, host));
}
