/** Segments of arena memory, for gather writes and scatter reads. */

export interface Segments {
  /** Pairs of (place, bytes). */
  readonly segments: Float64Array;
  readonly count: number;
}

/** Bytes of the first `count`. Hot path. */
export function lengthOf(segments: Float64Array, count: number): number {
  let length = 0;
  for (let i = 0; i < count; i++) length += segments[i * 2 + 1]!;
  return length;
}
