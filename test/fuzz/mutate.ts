/** Changes an input a little: bits, numbers at the edges, pieces cut out, doubled, or taken from another input. */

import { EDGES } from './draw.ts';
import type { Draw } from './draw.ts';

/** Inputs do not grow beyond this by mutation. */
const LARGEST = 2 ** 20;
/** Headers are worth more than payloads. */
const FRONT = 512;

export function mutate(draw: Draw, input: Uint8Array, others: readonly Uint8Array[]): Uint8Array {
  let bytes = Buffer.from(input);
  for (let rounds = draw.between(1, 5); rounds > 0; rounds--) bytes = once(draw, bytes, others);
  return bytes.subarray(0, LARGEST);
}

function once(draw: Draw, bytes: Buffer<ArrayBuffer>, others: readonly Uint8Array[]): Buffer<ArrayBuffer> {
  if (bytes.length < 9) return Buffer.concat([bytes, draw.noise(16)]);
  const at = draw.below(draw.chance(0.6) ? Math.min(FRONT, bytes.length - 8) : bytes.length - 8);
  switch (draw.below(9)) {
    case 0:
    case 1:
      bytes[at]! ^= 1 << draw.below(8);
      return bytes;
    case 2:
      if (draw.chance(0.5)) bytes.writeUInt32BE(draw.one(EDGES), at);
      else bytes.writeUInt32LE(draw.one(EDGES), at);
      return bytes;
    case 3:
      bytes.writeBigUInt64BE(
        BigInt.asUintN(64, BigInt(draw.one(EDGES)) << BigInt(draw.one([0, 0, 9, 32, 53]))),
        at & ~7,
      );
      return bytes;
    case 4:
      return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + draw.between(1, 64))]);
    case 5:
      return Buffer.concat([bytes.subarray(0, at), draw.noise(draw.between(1, 32)), bytes.subarray(at)]);
    case 6: {
      const piece = bytes.subarray(at, at + draw.between(1, 256));
      return Buffer.concat([
        bytes.subarray(0, at),
        ...Array<Buffer>(draw.between(2, 8)).fill(piece),
        bytes.subarray(at),
      ]);
    }
    case 7: {
      const other = others.length === 0 ? bytes : draw.one(others);
      const from = draw.below(other.length);
      return Buffer.concat([
        bytes.subarray(0, at),
        other.subarray(from, from + draw.between(1, 1024)),
        bytes.subarray(at),
      ]);
    }
    default:
      return draw.chance(0.3) ? bytes.subarray(0, at) : bytes;
  }
}
