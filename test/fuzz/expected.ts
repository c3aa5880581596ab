/** Errors of ours, with words that can be read, are what an enemy gets; everything else is harm. */

import { BlksnapError } from '../../src/util/errors.ts';
import { KIB } from '../../src/util/units.ts';

/** Null where the action failed as it may. */
export async function expected<T>(action: () => T | Promise<T>): Promise<T | null> {
  try {
    return await action();
  } catch (cause) {
    if (!(cause instanceof BlksnapError)) throw cause;
    if (cause.message.length > 16 * KIB) throw new Error(`a message of ${cause.message.length} characters`, { cause });
    return null;
  }
}
