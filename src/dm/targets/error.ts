/** error: fails every read and every change with EIO. A flush has nothing here that it could lose, and ends well.
 *
 *      START LENGTH error */

import { DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES } from '../../block/bio.ts';
import type { Bio } from '../../block/bio.ts';
import { unreachable } from '../../util/assert.ts';
import { ERRNO } from '../../util/errors.ts';
import { Ending } from '../../block/ending.ts';
import { Target } from '../target.ts';
import type { TargetType } from '../target.ts';

class ErrorTarget extends Target {
  readonly type = 'error';
  readonly #ending = new Ending();

  constructor() {
    super([]);
  }

  table(): string {
    return '';
  }

  submit(bio: Bio): void {
    switch (bio.op) {
      case READ:
      case WRITE:
      case DISCARD:
      case WRITE_ZEROES:
        this.#ending.end(bio, ERRNO.EIO);
        return;
      case FLUSH:
        this.#ending.end(bio, 0);
        return;
      default:
        unreachable(bio.op);
    }
  }
}

export const error: TargetType = (args) => {
  args.end();
  return new ErrorTarget();
};
