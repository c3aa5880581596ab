/** What the daemon itself costs: its start, its memory, its idling, questions about a very large disk, and for how
 *  long a snapshot of many disks holds their writes. */

import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { startDaemon, withDaemon } from '../blksnap-server.ts';
import { runFio } from '../fio.ts';
import type { Entrant, Experiment } from '../measurement.ts';
import { cpuMs, residentMiB } from '../process-cost.ts';
import { median } from '../statistics.ts';

const MIB = 1024 * 1024;
const TAKEN_DISKS = 8;
const TAKE_EVERY_MS = 200;
const LARGE_DISK_BYTES = 16 * 1024 ** 4;

const LIFE: Entrant = {
  name: 'blksnap-daemon',
  title: 'blksnap daemon',
  needs: ['fio'],
  measure: async (stage) => {
    const daemon = await startDaemon(path.join(stage.dir, 'daemon'));
    try {
      const { uri } = await daemon.client.attach({ path: stage.disk, name: 'bench' });
      await sleep(1000);
      const idleMiB = residentMiB(daemon.pid);
      const before = cpuMs(daemon.pid);
      await sleep(stage.settings.quick ? 2000 : 5000);
      const idleCpuMs = cpuMs(daemon.pid) - before;
      const job = { rw: 'randrw', blockBytes: MIB, queueDepth: 16, onePass: false } as const;
      const range = { offset: 0, length: stage.settings.diskBytes };
      await runFio(job, { target: { uris: [uri, uri, uri, uri] }, range, runMs: stage.settings.runMs });
      return { value: daemon.startMs, idleCpuMs, idleMiB, loadMiB: residentMiB(daemon.pid) };
    } finally {
      await daemon.stop();
    }
  },
};

/** A sparse disk, every tracking block of which is a byte of the map. */
const MAP: Entrant = {
  name: 'blksnap-daemon',
  title: 'blksnap, change map of a disk of 16 TiB',
  needs: [],
  measure: (stage) =>
    withDaemon({ dir: stage.dir }, async ({ client }) => {
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
    }),
};

/** Takes snapshots of all disks again and again while all of them are written to. */
const TAKE: Entrant = {
  name: 'blksnap-daemon',
  title: `blksnap, snapshot of ${TAKEN_DISKS} disks`,
  needs: ['fio'],
  measure: (stage) =>
    withDaemon({ dir: stage.dir }, async ({ client }) => {
      const disks = Array.from({ length: TAKEN_DISKS }, (_, index) => `disk${index}`);
      const length = Math.floor(stage.settings.diskBytes / TAKEN_DISKS / MIB) * MIB;
      const uris: string[] = [];
      for (const name of disks) {
        const file = path.join(stage.dir, `${name}.raw`);
        fs.copyFileSync(stage.disk, file);
        fs.truncateSync(file, length);
        uris.push((await client.attach({ path: file, name })).uri);
      }
      const job = { rw: 'randwrite', blockBytes: 4096, queueDepth: 32 / TAKEN_DISKS, onePass: false } as const;
      const load = (): ReturnType<typeof runFio> =>
        runFio(job, { target: { uris }, range: { offset: 0, length }, runMs: stage.settings.runMs });
      await load();
      const { p99Us } = await load();
      const held: number[] = [];
      const loaded = load();
      await sleep(300); // fio connects.
      for (let took = 300; took < stage.settings.runMs; took += TAKE_EVERY_MS) {
        const snapshot = await client.createSnapshot({ disks, storage: ':memory:' });
        held.push(snapshot.heldMs);
        await client.destroySnapshot(snapshot.id);
        await sleep(TAKE_EVERY_MS);
      }
      await loaded;
      const value = median(held);
      return { value, p99Us, heldByP99: (value * 1000) / p99Us, longestMs: Math.max(...held) };
    }),
};

function experiment(name: string, title: string, entrant: Entrant): Experiment {
  return {
    name,
    title,
    group: 'daemon',
    unit: 'ms',
    better: 'less',
    place: 'memory',
    quick: true,
    entrants: [entrant],
  };
}

export const DAEMON: readonly Experiment[] = [
  experiment('daemon', 'start of the daemon', LIFE),
  experiment('cbt-map', 'reading the change map of a sparse disk of 16 TiB', MAP),
  experiment('take', `writes held by a snapshot of ${TAKEN_DISKS} disks under load, queue depth 32 in all`, TAKE),
];
