/** The parameters of a daemon: how finely changes are tracked, how much is copied at once and in how much memory, how
 *  storage grows, and how many snapshots there may be. Set when it starts, the same for all its disks.
 *
 *  docs/parameters.md says what each costs, and which parameter of the kernel module it answers to. */

import { BlksnapError } from '../util/errors.ts';
import { GIB, MIB, formatSize } from '../util/units.ts';
import { TRACKING_LIMITS } from './cbt-map.ts';
import { CHUNK } from './chunk-table.ts';
import { MAX_RUN } from './cow-run.ts';

export interface Parameters {
  /** Tracking blocks have at least 2^min bytes, at most 2^max, and doubling stops at this count of them. */
  readonly trackingBlockMinShift: number;
  readonly trackingBlockMaxShift: number;
  readonly trackingBlockMaxCount: number;
  /** What a write saves at least, aligned, when it touches it first: a power of two. */
  readonly copyUnitBytes: number;
  /** Memory for everything on the data path. */
  readonly arenaBytes: number;
  /** The part of it that copies are made in. */
  readonly copyMemoryBytes: number;
  /** How long a write waits for copy memory before the snapshot breaks. */
  readonly cowTimeoutMs: number;
  /** What the storage of a snapshot grows by at most, when less than half of it is free. */
  readonly storagePortionBytes: number;
  readonly maxSnapshots: number;
  readonly maxSnapshotsPerDisk: number;
  /** NBD clients at once, on each thread. */
  readonly maxConnections: number;
}

export const DEFAULT_PARAMETERS: Parameters = {
  trackingBlockMinShift: TRACKING_LIMITS.minShift,
  trackingBlockMaxShift: TRACKING_LIMITS.maxShift,
  trackingBlockMaxCount: TRACKING_LIMITS.maxCount,
  copyUnitBytes: CHUNK,
  arenaBytes: 128 * MIB,
  copyMemoryBytes: 32 * MIB,
  cowTimeoutMs: 10_000,
  storagePortionBytes: GIB,
  maxSnapshots: 256,
  maxSnapshotsPerDisk: 64,
  maxConnections: 256,
};

/** Places in it are indices of one typed array, which in Node 20 has at most 4 GiB. */
const LARGEST_ARENA = 4 * GIB;

/** A parameter's option, what it may be, and how it is written. */
interface Rule {
  readonly option: string;
  readonly min: number;
  readonly max: number;
  readonly unit: 'bytes' | 'ms' | 'count';
  readonly powerOfTwo?: boolean;
}

const PARAMETER_RULES: { readonly [Name in keyof Parameters]: Rule } = {
  trackingBlockMinShift: { option: '--tracking-block-min-shift', min: 12, max: 30, unit: 'count' },
  trackingBlockMaxShift: { option: '--tracking-block-max-shift', min: 12, max: 30, unit: 'count' },
  trackingBlockMaxCount: { option: '--tracking-block-max-count', min: 1, max: 2 ** 30, unit: 'count' },
  copyUnitBytes: { option: '--copy-unit', min: CHUNK, max: MAX_RUN * CHUNK, unit: 'bytes', powerOfTwo: true },
  arenaBytes: { option: '--arena', min: 16 * MIB, max: LARGEST_ARENA, unit: 'bytes' },
  copyMemoryBytes: { option: '--copy-memory', min: MIB, max: LARGEST_ARENA / 2, unit: 'bytes' },
  cowTimeoutMs: { option: '--cow-timeout', min: 1, max: 3_600_000, unit: 'ms' },
  storagePortionBytes: { option: '--storage-portion', min: MIB, max: 1024 * GIB, unit: 'bytes' },
  maxSnapshots: { option: '--max-snapshots', min: 1, max: 65_536, unit: 'count' },
  maxSnapshotsPerDisk: { option: '--max-snapshots-per-disk', min: 1, max: 4096, unit: 'count' },
  maxConnections: { option: '--max-connections', min: 1, max: 4096, unit: 'count' },
};

/** The defaults with what was given in their place.
 *  Errors: EINVAL, naming the option, for what is out of its range or does not fit another. */
export function checkedParameters(given: { readonly [Name in keyof Parameters]?: number | undefined }): Parameters {
  const parameters = { ...DEFAULT_PARAMETERS };
  for (const name of Object.keys(PARAMETER_RULES) as Array<keyof Parameters>) {
    const value = given[name];
    if (value === undefined) continue;
    checkRange(name, value);
    parameters[name] = value;
  }
  const { trackingBlockMinShift, trackingBlockMaxShift, arenaBytes, copyMemoryBytes } = parameters;
  if (trackingBlockMinShift > trackingBlockMaxShift) {
    throw refused(
      'trackingBlockMinShift',
      trackingBlockMinShift,
      `at most --tracking-block-max-shift ${trackingBlockMaxShift}`,
    );
  }
  if (copyMemoryBytes > arenaBytes / 2) {
    throw refused('copyMemoryBytes', copyMemoryBytes, `at most half of --arena ${formatSize(arenaBytes)}`);
  }
  return parameters;
}

function checkRange(name: keyof Parameters, value: number): void {
  const { min, max, unit, powerOfTwo = false } = PARAMETER_RULES[name];
  const isKind = powerOfTwo ? Number.isInteger(Math.log2(value)) : Number.isSafeInteger(value);
  if (!isKind || value < min || value > max) {
    const kind = powerOfTwo ? 'a power of two' : 'a whole number';
    throw refused(name, value, `${kind} from ${written(min, unit)} to ${written(max, unit)}`);
  }
  if (unit === 'bytes' && value % 4096 !== 0) throw refused(name, value, 'a multiple of 4096 bytes');
}

function refused(name: keyof Parameters, value: number, want: string): BlksnapError {
  const { option, unit } = PARAMETER_RULES[name];
  return new BlksnapError('EINVAL', `Cannot use ${option} ${written(value, unit)}: want ${want}`);
}

function written(value: number, unit: Rule['unit']): string {
  return unit === 'bytes' ? formatSize(value) : unit === 'ms' ? `${value} ms` : String(value);
}
