/** What may go wrong in a run, and how often: drawn once from the seed, so that some runs are calm and every kind of
 *  fault also comes alone. Probabilities are per operation. */

import { Prng } from '../../src/util/prng.ts';

export interface Weather {
  readonly originReadError: number;
  readonly originWriteError: number;
  readonly syncError: number;
  readonly storageReadError: number;
  readonly storageWriteError: number;
  /** A write to storage or a journal that succeeds, and that the device fails later, when it is written back. */
  readonly writebackError: number;
  /** Of a backup's files; a write error is a full disk. */
  readonly backupReadError: number;
  readonly backupWriteError: number;
  readonly backupSyncError: number;
  /** Whether sectors go bad, to stay so until they are written. */
  readonly badSectors: boolean;
  /** Pages that an origin may get beyond those it has: it lies on storage that is shared with others. */
  readonly originSparePages: number;
  readonly interrupted: number;
  readonly shortIo: number;
  /** An operation that takes a hundred times as long. */
  readonly stall: number;
  /** Longest ordinary time of an operation, microseconds. */
  readonly originSlowUs: number;
  readonly storageSlowUs: number;
  /** An operation takes effect in two steps, with others in between. */
  readonly torn: number;
  /** Pages of a snapshot's storage; few enough to overflow, or Infinity. */
  readonly storagePages: number;
  readonly copyMemoryBytes: number;
  /** From a chunk to more than a whole disk. */
  readonly copyUnitBytes: number;
  /** A bystander holds nearly all of the arena. */
  readonly hoggedArena: number;
  readonly cowTimeoutMs: number;
  /** Whether the change map is in a file, which outlives a killed daemon. */
  readonly mapInFile: boolean;
  /** Takes that are to outlive the daemon. */
  readonly persistent: number;
}

const KIB = 1024;

export function drawWeather(seed: number): Weather {
  const random = new Prng(seed * 31 + 7);
  for (let i = 0; i < 8; i++) random.u32();
  // Draws of its own: what is added here changes no other weather.
  const more = new Prng(seed * 31 + 8);
  for (let i = 0; i < 8; i++) more.u32();
  const moreFails = (most: number): number => (more.chance(0.3) ? (most * (1 + more.below(10))) / 10 : 0);
  const often = (chance: number, most: number): number =>
    random.chance(chance) ? (most * (1 + random.below(10))) / 10 : 0;
  const failing = random.chance(0.45);
  const fails = (most: number): number => (failing ? often(0.5, most) : 0);
  const weather = {
    originReadError: fails(0.02),
    originWriteError: fails(0.03),
    syncError: fails(0.1),
    storageReadError: fails(0.02),
    storageWriteError: fails(0.05),
    backupReadError: moreFails(0.02),
    backupWriteError: moreFails(0.05),
    backupSyncError: moreFails(0.1),
    badSectors: failing && more.chance(0.4),
    originSparePages: failing && more.chance(0.3) ? more.below(20) : Infinity,
    interrupted: often(0.5, 0.05),
    shortIo: often(0.5, 0.1),
    stall: often(0.4, 0.02),
    originSlowUs: 20 + random.below(400),
    storageSlowUs: random.chance(0.5) ? 20 + random.below(400) : 2000 + random.below(20_000),
    torn: often(0.7, 0.4),
    storagePages: failing && random.chance(0.4) ? 20 + random.below(200) : Infinity,
    copyMemoryBytes: (random.chance(0.5) ? 16 : 64 + 64 * random.below(6)) * KIB,
    hoggedArena: often(0.3, 0.3),
    cowTimeoutMs: failing && random.chance(0.4) ? 20 : 10_000,
    mapInFile: random.chance(0.5),
  };
  const persistent = weather.mapInFile && random.chance(0.6) ? 0.7 : 0;
  const writebackError = failing && more.chance(0.3) ? (0.05 * (1 + more.below(10))) / 10 : 0;
  const copyUnitBytes = (more.chance(0.5) ? 4 : 8 * 2 ** more.below(8)) * KIB;
  return { ...weather, persistent, writebackError, copyUnitBytes };
}
