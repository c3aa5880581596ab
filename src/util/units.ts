/** Sizes as people write and read them. All sizes are bytes; K, M, G, T and P are powers of 1024. */

import { BlksnapError } from './errors.ts';

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;
export const TIB = 1024 * GIB;
const PIB = 1024 * TIB;
const SUFFIXES: Record<string, number> = { '': 1, K: KIB, M: MIB, G: GIB, T: TIB, P: PIB };

/** Parses `4096`, `64K`, `1.5G`, `10GiB`. Errors: EINVAL for anything else, or above 8 PiB. */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:I?B)?$/i.exec(text.trim());
  const bytes = match === null ? NaN : Number(match[1]) * SUFFIXES[(match[2] ?? '').toUpperCase()]!;
  if (!Number.isSafeInteger(bytes) || bytes > 8 * PIB) {
    throw new BlksnapError(
      'EINVAL',
      `Cannot read size "${text}": want a whole number of bytes, or one with K, M, G or T`,
    );
  }
  return bytes;
}

/** `1536` is `1.5 KiB`; three significant digits. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let unit = 'B';
  for (const next of ['KiB', 'MiB', 'GiB', 'TiB', 'PiB']) {
    if (value < 1024) break;
    value /= 1024;
    unit = next;
  }
  if (unit === 'B') return `${bytes} B`;
  return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ${unit}`;
}

/** `0.012` is `12 ms`; `75` is `1 min 15 s`. */
export function formatSeconds(seconds: number): string {
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${Math.round(seconds * 1e3)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function alignDown(value: number, alignment: number): number {
  return value - (value % alignment);
}

export function alignUp(value: number, alignment: number): number {
  return alignDown(value + alignment - 1, alignment);
}
