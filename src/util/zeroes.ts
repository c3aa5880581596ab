/** Tells data that is all zero, which is worth neither storing nor sending. */

const ZEROES = Buffer.alloc(65_536);

/** Whether every byte is zero. Data rarely gets past the first probes. */
export function isZero(bytes: Uint8Array): boolean {
  const last = bytes.length - 1;
  if (last < 0) return true;
  if (bytes[0] !== 0 || bytes[last] !== 0 || bytes[last >> 1] !== 0) return false;
  for (let at = 0; at <= last; at += ZEROES.length) {
    const end = Math.min(at + ZEROES.length, bytes.length);
    if (ZEROES.compare(bytes, at, end, 0, end - at) !== 0) return false;
  }
  return true;
}
