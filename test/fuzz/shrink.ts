/** Makes an input that does harm smaller, as long as it still does: pieces cut out, then bytes set to zero. */

/** `harms` may be slow: at most `tries` questions. */
export function shrink(input: Uint8Array, harms: (smaller: Uint8Array) => boolean, tries: number): Uint8Array {
  let best = Buffer.from(input);
  let left = tries;
  const better = (candidate: Buffer<ArrayBuffer>): boolean => {
    if (left-- <= 0 || !harms(candidate)) return false;
    best = candidate;
    return true;
  };
  for (let size = Math.ceil(best.length / 2); size >= 1 && left > 0; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let at = 0; at < best.length && left > 0;) {
      const without = Buffer.concat([best.subarray(0, at), best.subarray(at + size)]);
      if (without.length === best.length || !better(without)) at += size;
    }
  }
  for (let size = Math.ceil(best.length / 8); size >= 1 && left > 0; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let at = 0; at < best.length && left > 0; at += size) {
      if (best.subarray(at, at + size).every((byte) => byte === 0)) continue;
      const zeroed = Buffer.from(best);
      zeroed.fill(0, at, at + size);
      better(zeroed);
    }
  }
  return best;
}
