/** Assertions: a failed one is a bug in this program, never bad input. */

/** Throws unless the condition holds. Keep `message` a constant string on the hot path. */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(`assertion failed: ${message}`);
}

/** Marks the end of an exhaustive switch: does not compile when a case is missing. */
export function unreachable(value: never): never {
  throw new Error(`assertion failed: unreachable value ${String(value)}`);
}
