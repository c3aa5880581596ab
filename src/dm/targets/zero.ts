/** zero: reads as zeros, and takes every write without keeping it.
 *
 *      START LENGTH zero */

import { DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES } from '../../block/bio.ts';
import type { Bio } from '../../block/bio.ts';
import type { Extent } from '../../block/device.ts';
import type { Arena } from '../../io/arena.ts';
import { unreachable } from '../../util/assert.ts';
import { Ending } from '../../block/ending.ts';
import { Target } from '../target.ts';
import type { TargetContext, TargetType } from '../target.ts';

class Zero extends Target {
  readonly type = 'zero';
  readonly #arena: Arena;
  readonly #ending = new Ending();

  constructor(context: TargetContext) {
    super([]);
    this.#arena = context.reactor.arena;
  }

  table(): string {
    return '';
  }

  submit(bio: Bio): void {
    switch (bio.op) {
      case READ:
        this.#arena.bytes.fill(0, bio.at, bio.at + bio.length);
        break;
      case WRITE:
      case FLUSH:
      case DISCARD:
      case WRITE_ZEROES:
        break;
      default:
        unreachable(bio.op);
    }
    this.#ending.end(bio, 0);
  }

  override async extents(_offset: number, length: number): Promise<Extent[]> {
    return [{ length, hole: true, zero: true }];
  }
}

export const zero: TargetType = (args, context) => {
  args.end();
  return new Zero(context);
};
