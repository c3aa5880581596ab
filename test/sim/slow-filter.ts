/** A filter of somebody else's: holds bios for a while, and so lets them pass in another order. */

import type { Bio } from '../../src/block/bio.ts';
import { BlockFilter } from '../../src/block/filter.ts';
import type { SimReactor } from './reactor.ts';

const LONGEST_US = 3000;

export class SlowFilter extends BlockFilter {
  readonly name: string;
  readonly altitude: number;
  readonly #reactor: SimReactor;

  constructor(altitude: number, reactor: SimReactor) {
    super();
    this.name = `slow${altitude}`;
    this.altitude = altitude;
    this.#reactor = reactor;
  }

  submit(bio: Bio): void {
    const { random } = this.#reactor;
    if (random.chance(0.5)) this.below.submit(bio);
    else this.#reactor.timer(random.below(LONGEST_US) / 1000, { complete: () => this.below.submit(bio) });
  }

  async attach(): Promise<void> {}
  async detach(): Promise<void> {}
  async ctl(): Promise<void> {}
}
