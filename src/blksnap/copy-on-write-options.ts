/** What copy-on-write for one origin works with, and whom it tells. */

import type { Arena } from '../io/arena.ts';
import type { Reactor } from '../io/reactor.ts';
import type { BioPool, BioSink } from '../block/bio.ts';
import type { HoleFinder } from '../block/device.ts';
import type { DiffArea } from './diff-area.ts';

export interface CopyOnWriteOptions {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  /** Memory for copies alone: were it shared with clients, their held writes could take all of it. */
  readonly memory: Arena;
  /** What a write saves at least when it touches it first: a power of two of chunks, aligned. */
  readonly copyUnitBytes: number;
  /** How long a write may wait for copy memory. */
  readonly timeoutMs: number;
  /** The filter under which the origin lies. */
  readonly above: { readonly below: BioSink };
  /** Of the origin, where nothing between the filter and the device changes what is read; else null. */
  readonly holes: () => HoleFinder | null;
  /** Hears that a write which was held goes on. */
  readonly onPass: () => void;
  /** Hears that an area's image was lost, before any write goes on for that reason. */
  readonly onBroken: (area: DiffArea, errno: number) => void;
}
