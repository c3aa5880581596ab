/** koffi, loaded on first use: reading and binding its native code takes longer than all else that a command does before
 *  it runs, and most commands call nothing through it. */

import { createRequire } from 'node:module';
import type Koffi from 'koffi';

let loaded: typeof Koffi | null = null;

export function ffi(): typeof Koffi {
  loaded ??= createRequire(import.meta.url)('koffi') as typeof Koffi;
  return loaded;
}
