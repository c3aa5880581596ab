/** What the daemon itself costs: its start, its memory, its idling, questions about a very large disk, and for how
 *  long a snapshot of many disks holds their writes. */

import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { startDaemon, withDaemon } from '../blksnap-server.ts';
import type { Driver } from '../blksnap-server.ts';
import { makeFullDisk } from '../disk-file.ts';
import { runFio } from '../fio.ts';
import type { Experiment, Sample, Stage } from '../measurement.ts';
import { cpuMs, residentMiB } from '../process-cost.ts';
import { median } from '../statistics.ts';

const MIB = 1024 * 1024;
const TAKEN_DISKS = 8;
const TAKE_EVERY_MS = 200;
/** Longer than other runs: each take is one sample. */
const TAKE_MS = 2000;
const TAKE_QUICK_MS = 400;
const LARGE_DISK_BYTES = 16 * 1024 ** 4;

type Measure = (stage: Stage, driver: Driver) => Promise<Sample>;

const measureLife: Measure = async (stage, driver) => {
  const daemon = await startDaemon(path.join(stage.dir, 'daemon'), driver);
  try {
    const { uri } = await daemon.client.attach({ path: stage.disk, name: 'bench' });
    await sleep(1000);
    const idleMiB = residentMiB(daemon.pid);
    const before = cpuMs(daemon.pid);
    await sleep(stage.settings.quick ? 2000 : 3000);
    const idleCpuMs = cpuMs(daemon.pid) - before;
    const job = { rw: 'randrw', blockBytes: MIB, queueDepth: 16, onePass: false } as const;
    const range = { offset: 0, length: stage.settings.diskBytes };
    await runFio(job, { target: { uris: [uri, uri, uri, uri] }, range, runMs: stage.settings.runMs });
    return { value: daemon.startMs, idleCpuMs, idleMiB, loadMiB: residentMiB(daemon.pid) };
  } finally {
    await daemon.stop();
  }
};

/** A sparse disk, every tracking block of which is a byte of the map. */
const measureMap: Measure = (stage, driver) =>
  withDaemon({ dir: stage.dir, driver }, async ({ client }) => {
    const file = path.join(stage.dir, 'large.raw');
    fs.writeFileSync(file, '');
    fs.truncateSync(file, LARGE_DISK_BYTES);
    const began = performance.now();
    await client.attach({ path: file, name: 'large' });
    const attached = performance.now();
    const map = await client.cbtMap('large');
    const read = performance.now();
    const snapshot = await client.createSnapshot({ disks: ['large'], storage: ':memory:' });
    return { value: read - attached, attachMs: attached - began, heldMs: snapshot.heldMs, mapMiB: map.length / MIB };
  });

/** Takes snapshots of all disks again and again while all of them are written to. */
const measureTake: Measure = (stage, driver) =>
  withDaemon({ dir: stage.dir, driver }, async ({ client }) => {
    const disks = Array.from({ length: TAKEN_DISKS }, (_, index) => `disk${index}`);
    const length = Math.floor(stage.settings.diskBytes / TAKEN_DISKS / MIB) * MIB;
    const uris: string[] = [];
    for (const name of disks) {
      const file = path.join(stage.dir, `${name}.raw`);
      makeFullDisk(file, length);
      uris.push((await client.attach({ path: file, name })).uri);
    }
    const runMs = stage.settings.quick ? TAKE_QUICK_MS : TAKE_MS;
    const job = { rw: 'randwrite', blockBytes: 4096, queueDepth: 32 / TAKEN_DISKS, onePass: false } as const;
    const load = (): ReturnType<typeof runFio> =>
      runFio(job, { target: { uris }, range: { offset: 0, length }, runMs });
    await load();
    const { p99Us } = await load();
    const held: number[] = [];
    const loaded = load();
    await sleep(300); // fio connects.
    for (let took = 300; took < runMs; took += TAKE_EVERY_MS) {
      const snapshot = await client.createSnapshot({ disks, storage: ':memory:' });
      held.push(snapshot.heldMs);
      await client.destroySnapshot(snapshot.id);
      await sleep(TAKE_EVERY_MS);
    }
    await loaded;
    return { value: median(held), p99Us, longestMs: Math.max(...held) };
  });

function experiment(name: string, title: string, { words, measure }: { words: string; measure: Measure }): Experiment {
  return {
    name,
    title,
    group: 'daemon',
    unit: 'ms',
    better: 'less',
    place: 'memory',
    quick: true,
    entrants: [
      { name: 'blksnap-daemon', title: words, needs: ['fio'], measure: (stage) => measure(stage, 'uring') },
      {
        name: 'blksnap-daemon-portable',
        title: `${words}, portable driver`,
        needs: ['fio'],
        measure: (stage) => measure(stage, 'portable'),
      },
    ],
  };
}

export const DAEMON: readonly Experiment[] = [
  experiment('daemon', 'start of the daemon', { words: 'blksnap daemon', measure: measureLife }),
  experiment('cbt-map', 'reading the change map of a sparse disk of 16 TiB', {
    words: 'blksnap daemon',
    measure: measureMap,
  }),
  experiment('take', `writes held by a snapshot of ${TAKEN_DISKS} disks under load, queue depth 32 in all`, {
    words: `blksnap, snapshot of ${TAKEN_DISKS} disks`,
    measure: measureTake,
  }),
];
