/** The kinds of targets by their name in tables. */

import { BlksnapError } from '../util/errors.ts';
import { TargetArgs } from './args.ts';
import { SECTOR } from './table.ts';
import type { TableLine } from './table.ts';
import type { Target, TargetContext, TargetType } from './target.ts';
import { delay } from './targets/delay.ts';
import { dust } from './targets/dust.ts';
import { error } from './targets/error.ts';
import { flakey } from './targets/flakey.ts';
import { linear } from './targets/linear.ts';
import { mirror } from './targets/mirror.ts';
import { striped } from './targets/striped.ts';
import { zero } from './targets/zero.ts';

const TYPES = new Map<string, TargetType>(
  Object.entries({ linear, striped, mirror, zero, error, delay, flakey, dust }),
);

/** Errors: EINVAL for an unknown target, or arguments that are wrong. */
export function makeTarget(line: TableLine, context: Omit<TargetContext, 'length'>): Target {
  const type = TYPES.get(line.target);
  if (type === undefined) {
    throw new BlksnapError('EINVAL', `Cannot make target "${line.target}": known are ${[...TYPES.keys()].join(', ')}`);
  }
  return type(new TargetArgs(line.target, line.args), { ...context, length: line.length * SECTOR });
}
