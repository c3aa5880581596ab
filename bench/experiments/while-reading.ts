/** How long writes to the origin take while somebody reads the whole image as fast as possible. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { BLKSNAP } from '../blksnap-server.ts';
import type { Driver } from '../blksnap-server.ts';
import type { Entrant, Experiment, Stage } from '../measurement.ts';
import { QEMU_CBW, tracked } from '../servers.ts';
import type { RunningServer, ServerRow } from '../servers.ts';
import { median } from '../statistics.ts';
import { measureServer } from './fio-entrant.ts';

const MIB = 1024 * 1024;

type Command = readonly [string, ...string[]];
/** What runs beside the writes, each again and again. */
type Reader = (server: RunningServer, stage: Stage) => readonly Command[];

const nobody: Reader = () => [];
const nbdcopy: Reader = ({ imageUri }) => [['nbdcopy', imageUri!, 'null:']];
/** Each run is a full backup of a snapshot of its own. */
const backup: Reader = (_server, { dir }) => {
  const places = ['--dir', path.join(dir, 'daemon'), '--to', backupsIn(dir), '--storage', dir];
  return [[BLKSNAP, 'backup', 'bench', '--full', ...places]];
};

const backupsIn = (dir: string): string => path.join(dir, 'backups');
const LOOK_EVERY_MS = 100;

function bytesIn(dir: string): number {
  if (!fs.existsSync(dir)) return 0;
  const files = fs.readdirSync(dir, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const sizes = files.map((file) => fs.statSync(path.join(file.parentPath, file.name), { throwIfNoEntry: false }));
  return sizes.reduce((sum, size) => sum + (size === undefined ? 0 : size.blocks * 512), 0);
}

/** Looks at how fast the backups grow, until asked for the median: then fio was writing, and not starting or ending. */
function watchBackups(dir: string): () => number {
  const rates: number[] = [];
  let last = { bytes: bytesIn(dir), ms: performance.now() };
  const timer = setInterval(() => {
    const now = { bytes: bytesIn(dir), ms: performance.now() };
    rates.push((now.bytes - last.bytes) / MIB / ((now.ms - last.ms) / 1000));
    last = now;
  }, LOOK_EVERY_MS);
  return () => {
    clearInterval(timer);
    return median(rates);
  };
}

/** Runs the command again and again; the function returned ends it. */
function keepRunning([command, ...args]: Command): () => Promise<void> {
  let ending = false;
  let child = spawn(command, args, { stdio: 'ignore' });
  const over = (async () => {
    for (;;) {
      const [code] = (await once(child, 'exit')) as [number | null];
      if (ending) return;
      if (code !== 0) throw new Error(`${command} ${args.join(' ')}: exit status ${code}`);
      child = spawn(command, args, { stdio: 'ignore' });
    }
  })();
  over.catch(() => {}); // Heard by whoever ends it.
  return async () => {
    ending = true;
    child.kill('SIGTERM');
    await over;
  };
}

function entrant(row: ServerRow, queueDepth: number, reader: Reader, needs: readonly string[]): Entrant {
  const job = { rw: 'randwrite', blockBytes: 4096, queueDepth, onePass: true } as const;
  return {
    name: row.name,
    title: row.title,
    needs: ['fio', ...row.needs, ...needs],
    measure: async (stage) => {
      const server = await row.start(stage);
      try {
        const beside = reader(server, stage).map(keepRunning);
        try {
          const backupRate = reader === backup ? watchBackups(backupsIn(stage.dir)) : null;
          const sample = await measureServer(server, server.uri, { stage, job, unit: 'IOPS' });
          return backupRate === null ? sample : { ...sample, backupMiBs: backupRate() };
        } finally {
          await Promise.all(beside.map((end) => end()));
        }
      } finally {
        await server.stop();
      }
    },
  };
}

function experiment(queueDepth: number): Experiment {
  const held = (name: string, title: string, driver: Driver = 'uring'): ServerRow =>
    tracked(name, title, { held: true, driver });
  const [qemu] = QEMU_CBW;
  const read: ServerRow = { ...qemu, name: `${qemu.name}-nbdcopy`, title: `${qemu.title}, nbdcopy reads` };
  return {
    name: `write-while-reading-qd${queueDepth}`,
    title: `4 KiB first writes while the image is read, queue depth ${queueDepth}`,
    group: 'while-reading',
    unit: 'IOPS',
    better: 'more',
    place: 'memory',
    quick: false,
    entrants: [
      entrant(held('blksnap-held', 'blksnap, held, nobody reads'), queueDepth, nobody, []),
      entrant(held('blksnap-nbdcopy', 'blksnap, nbdcopy reads the image'), queueDepth, nbdcopy, ['nbdcopy']),
      entrant(held('blksnap-backup', 'blksnap, full backups run'), queueDepth, backup, []),
      entrant(
        held('blksnap-backup-portable', 'blksnap, full backups run, portable', 'portable'),
        queueDepth,
        backup,
        [],
      ),
      entrant(qemu, queueDepth, nobody, []),
      entrant(read, queueDepth, nbdcopy, ['nbdcopy']),
    ],
  };
}

export const WHILE_READING: readonly Experiment[] = [experiment(1), experiment(32)];
