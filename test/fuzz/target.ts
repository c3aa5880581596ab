/** The contract of fuzz targets: something that takes bytes which anybody may have made.
 *
 *  An input is a file's worth of bytes, so that one which once did harm can be kept (corpus.ts). A target says how such
 *  inputs are made up from a grammar; the rest are mutations of the corpus. `run` rejects when the input did harm:
 *  an error that is none of ours, a lie that was believed, memory that is still lent, somebody else not served.
 *  Time and memory are watched for all targets alike (bounds.ts). */

import type { Draw } from './draw.ts';

export interface FuzzTarget {
  readonly name: string;
  generate(draw: Draw): Uint8Array;
  open(): Promise<FuzzSubject>;
}

export interface FuzzSubject {
  run(input: Uint8Array): Promise<void>;
  /** Rejects when something is left. */
  close(): Promise<void>;
}
