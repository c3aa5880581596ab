/** Backup and restore of a whole disk, and an increment of 1 % of it. Everybody reads the image of the same kind of
 *  snapshot of ours over NBD, and ends with the data on stable storage (fsync); restores are local. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { BLKSNAP, withDaemon } from '../blksnap-server.ts';
import type { Daemon, Driver } from '../blksnap-server.ts';
import { makeHalfFullDisk } from '../disk-file.ts';
import { runFio } from '../fio.ts';
import type { Entrant, Experiment, PlaceName, Sample, Stage } from '../measurement.ts';

const CHANGED_BLOCK_BYTES = 64 * 1024;
/** For a copy that hangs: the others still get their turn. */
const LIMIT_MS = 180_000;
const run = (command: string, args: readonly string[]): Promise<{ readonly stdout: string }> =>
  promisify(execFile)(command, args, { timeout: LIMIT_MS });

async function secondsOf(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await work();
  return (performance.now() - began) / 1000;
}

function syncFile(file: string): void {
  const fd = fs.openSync(file, 'r+');
  fs.fsyncSync(fd);
  fs.closeSync(fd);
}

/** Runs a copying program, then puts its output on stable storage. */
function copied(output: string, command: string, args: readonly string[]): Promise<number> {
  return secondsOf(async () => {
    await run(command, args);
    syncFile(output);
  });
}

/** Serves a new source disk with a snapshot held, and hands over the image's URI. */
async function withImage(stage: Stage, use: (daemon: Daemon, imageUri: string) => Promise<Sample>): Promise<Sample> {
  const source = path.join(stage.dir, 'source.raw');
  makeHalfFullDisk(source, stage.settings.copyBytes);
  return await withDaemon({ dir: stage.dir }, async (daemon) => {
    await daemon.client.attach({ path: source, name: 'source' });
    const snapshot = await daemon.client.createSnapshot({ disks: ['source'], storage: stage.dir });
    return await use(daemon, snapshot.images[0]!.uri);
  });
}

interface BackupReport {
  readonly point: { readonly kind: string; readonly bytesRead: number };
  readonly progress: { readonly seconds: number };
}

function ours(name: string, title: string, driver: Driver): Entrant {
  return {
    name,
    title,
    needs: ['fio'],
    measure: async (stage) => {
      const source = path.join(stage.dir, 'source.raw');
      const to = path.join(stage.dir, 'backups');
      makeHalfFullDisk(source, stage.settings.copyBytes);
      return await withDaemon({ dir: stage.dir, driver }, async ({ dir, client }) => {
        const { uri } = await client.attach({ path: source, name: 'source' });
        const args = ['backup', 'source', '--to', to, '--dir', dir, '--storage', stage.dir, '--json'];
        const backUp = async (): Promise<BackupReport> => JSON.parse((await run(BLKSNAP, args)).stdout) as BackupReport;
        let full: BackupReport | null = null;
        const value = await secondsOf(async () => (full = await backUp()));
        const restored = path.join(stage.dir, 'restored.raw');
        const restoreArgs = ['restore', to, '--disk', 'source', '--to', restored];
        const restoreSeconds = await secondsOf(() => run(BLKSNAP, restoreArgs));
        fs.rmSync(restored);
        return { value, restoreSeconds, ...(await increment(uri, full!, { stage, backUp })) };
      });
    },
  };
}

const OURS = ours('blksnap', 'blksnap backup and restore', 'uring');
const OURS_PORTABLE = ours('blksnap-portable', 'blksnap, portable driver in the daemon', 'portable');

/** Changes 1 % of the disk in blocks here and there, and backs up again. */
async function increment(
  uri: string,
  full: BackupReport,
  { stage, backUp }: { readonly stage: Stage; readonly backUp: () => Promise<BackupReport> },
): Promise<Record<string, number>> {
  const { copyBytes } = stage.settings;
  const job = { rw: 'randwrite', blockBytes: CHANGED_BLOCK_BYTES, queueDepth: 4, onePass: true } as const;
  const changed = Math.floor(copyBytes / 100 / CHANGED_BLOCK_BYTES);
  const options = { target: { uris: [uri] }, range: { offset: 0, length: copyBytes }, runMs: 60_000 };
  await runFio({ ...job, requests: changed }, options);
  let report: BackupReport = full;
  const seconds = await secondsOf(async () => (report = await backUp()));
  if (report.point.kind !== 'incremental') throw new Error(`the second backup was ${report.point.kind}`);
  return {
    incrementSeconds: seconds,
    incrementWorkShare: report.progress.seconds / full.progress.seconds,
    incrementReadShare: report.point.bytesRead / (changed * CHANGED_BLOCK_BYTES),
  };
}

function qemuImg(format: 'raw' | 'qcow2'): Entrant {
  return {
    name: `qemu-img-${format}`,
    title: `qemu-img convert, ${format}`,
    needs: ['qemu-img'],
    measure: (stage) =>
      withImage(stage, async (_daemon, imageUri) => {
        const [stored, restored] = ['stored', 'restored'].map((name) => path.join(stage.dir, name));
        const convert = ['convert', '-W', '-m', '8'];
        const value = await copied(stored!, 'qemu-img', [...convert, '-f', 'raw', '-O', format, imageUri, stored!]);
        const back = [...convert, '-f', format, '-O', 'raw', stored!, restored!];
        return { value, restoreSeconds: await copied(restored!, 'qemu-img', back) };
      }),
  };
}

const NBDCOPY: Entrant = {
  name: 'nbdcopy-raw',
  title: 'nbdcopy, raw',
  needs: ['nbdcopy'],
  measure: (stage) =>
    withImage(stage, async (_daemon, imageUri) => {
      const [stored, restored] = ['stored', 'restored'].map((name) => path.join(stage.dir, name));
      const value = await copied(stored!, 'nbdcopy', [imageUri, stored!]);
      return { value, restoreSeconds: await copied(restored!, 'nbdcopy', [stored!, restored!]) };
    }),
};

function experiment(place: PlaceName): Experiment {
  return {
    name: place === 'disk' ? 'copy-disk' : 'copy',
    title: `full backup of a disk half full of random data, files ${place === 'disk' ? 'on disk' : 'in memory'}`,
    group: 'copy',
    unit: 's',
    better: 'less',
    place,
    quick: place === 'memory',
    entrants: [OURS, ...(place === 'memory' ? [OURS_PORTABLE] : []), qemuImg('qcow2'), qemuImg('raw'), NBDCOPY],
  };
}

export const COPYING: readonly Experiment[] = [experiment('memory'), experiment('disk')];
