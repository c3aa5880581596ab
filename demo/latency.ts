/** What the writer tells of one phase of the demo. */

export interface Latency {
  readonly writes: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly maxUs: number;
}

/** `samplesUs` must not be empty; it is sorted. */
export function latencyOf(samplesUs: number[]): Latency {
  samplesUs.sort((a, b) => a - b);
  const at = (share: number): number =>
    samplesUs[Math.min(samplesUs.length - 1, Math.floor(samplesUs.length * share))]!;
  return { writes: samplesUs.length, p50Us: at(0.5), p99Us: at(0.99), maxUs: samplesUs.at(-1)! };
}
