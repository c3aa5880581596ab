/** What is measured: fio jobs. A new workload is a row. */

export interface Workload {
  readonly name: string;
  readonly title: string;
  /** What the figure counts. */
  readonly unit: 'IOPS' | 'MiB/s';
  readonly rw: 'randread' | 'randwrite' | 'read' | 'write';
  readonly blockBytes: number;
  readonly queueDepth: number;
  /** Random workloads run for a time; sequential ones pass once over the disk, so that with a snapshot held
   *  every write of every pass is a first one. fio's random map visits each block once before any twice. */
  readonly onePass: boolean;
}

const KIB = 1024;

function random(rw: 'randread' | 'randwrite', queueDepth: number): Workload {
  const verb = rw === 'randread' ? 'read' : 'write';
  return {
    name: `${rw}-4k-qd${queueDepth}`,
    title: `4 KiB random ${verb}, queue depth ${queueDepth}`,
    unit: 'IOPS',
    rw,
    blockBytes: 4 * KIB,
    queueDepth,
    onePass: false,
  };
}

function sequential(rw: 'read' | 'write'): Workload {
  return {
    name: `${rw}-1m-qd4`,
    title: `1 MiB sequential ${rw}, queue depth 4`,
    unit: 'MiB/s',
    rw,
    blockBytes: 1024 * KIB,
    queueDepth: 4,
    onePass: true,
  };
}

export const WORKLOADS: readonly Workload[] = [
  random('randread', 1),
  random('randread', 32),
  random('randwrite', 1),
  random('randwrite', 32),
  sequential('read'),
  sequential('write'),
];
