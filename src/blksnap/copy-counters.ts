/** What copy-on-write has done for an origin. */

/** What happened so far. Only ever grows. */
export interface CopyCounters {
  /** Chunks stored; read, and all zeros; in holes, and not read. */
  copiedChunks: number;
  zeroChunks: number;
  holeChunks: number;
  reads: number;
  readBytes: number;
  storedBytes: number;
  /** Writes held for a read, and of those held for memory. */
  heldWrites: number;
  memoryWaits: number;
  /** Chunks that readers were done with: freed, or never copied. */
  releasedChunks: number;
  /** Images given up. */
  brokenImages: number;
}

export const NO_COPIES: CopyCounters = {
  copiedChunks: 0,
  zeroChunks: 0,
  holeChunks: 0,
  reads: 0,
  readBytes: 0,
  storedBytes: 0,
  heldWrites: 0,
  memoryWaits: 0,
  releasedChunks: 0,
  brokenImages: 0,
};

/** The sum of what several origins counted. */
export function totalOf(all: readonly CopyCounters[]): CopyCounters {
  const total = { ...NO_COPIES };
  for (const counters of all) {
    for (const name of Object.keys(total) as Array<keyof CopyCounters>) total[name] += counters[name];
  }
  return total;
}
