/** Reads the chunks of a block status reply. The server is not trusted. */

import { BlksnapError } from '../util/errors.ts';
import type { StatusExtent } from './export.ts';
import { getU64 } from './protocol.ts';

/** The extents of one context, cut to `length`. Errors: EPROTO. */
export function decodeStatus(
  chunks: readonly Uint8Array[],
  contextId: number,
  length: number,
  extended: boolean,
): StatusExtent[] {
  const head = extended ? 8 : 4;
  const step = extended ? 16 : 8;
  const extents: StatusExtent[] = [];
  let seen = 0;
  let left = length;
  for (const chunk of chunks) {
    const view = new DataView(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    const count = (chunk.length - head) / step;
    if (!Number.isInteger(count) || count < 1) throw malformed(`${chunk.length} bytes`);
    if (extended && view.getUint32(4) !== count)
      throw malformed(`${view.getUint32(4)} extents announced, ${count} sent`);
    if (view.getUint32(0) !== contextId) continue;
    seen++;
    for (let at = head; at < chunk.length && left > 0; at += step) {
      const run = Math.min(extended ? getU64(view, at) : view.getUint32(at), left);
      const flags = extended ? getU64(view, at + 8) : view.getUint32(at + 4);
      if (run === 0) throw malformed('an extent of no length');
      extents.push({ length: run, flags });
      left -= run;
    }
  }
  if (seen !== 1) throw malformed(`${seen} chunks for one context`);
  return extents;
}

function malformed(what: string): BlksnapError {
  return new BlksnapError('EPROTO', `The NBD server broke the protocol: malformed block status: ${what}`);
}
