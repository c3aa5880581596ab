/** Who is measured: NBD servers over one file. A new contender is a row: what it needs, and how to start it.
 *  Only one runs at a time, so the file is never shared. */

import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';

import { startServer } from './server-process.ts';

/** Where a contender works: the disk's file, and a directory for its sockets and other files, all in memory. */
export interface Stage {
  readonly disk: string;
  readonly dir: string;
}

export interface Running {
  /** NBD URI that fio connects to. */
  readonly uri: string;
  stop(): Promise<void>;
}

export interface Contender {
  readonly name: string;
  readonly title: string;
  /** Programs that must be installed. */
  readonly needs: readonly string[];
  start(stage: Stage): Promise<Running>;
}

const BLKSNAP = path.join(import.meta.dirname, '../bin/blksnap');
const run = promisify(execFile);

/** Starts a server that exports the disk under the empty name on one socket. */
async function startOnSocket(
  stage: Stage,
  command: string,
  args: (socket: string) => readonly string[],
): Promise<Running> {
  const socket = path.join(stage.dir, 'nbd.sock');
  const server = await startServer(command, args(socket), socket);
  return { uri: `nbd+unix:///?socket=${socket}`, stop: () => server.stop() };
}

/** Starts a daemon with the disk attached, which puts the tracker on it; `prepare` may do more with it. */
async function startDaemon(stage: Stage, prepare: (dir: string) => Promise<void>): Promise<Running> {
  const dir = path.join(stage.dir, 'daemon');
  const server = await startServer(BLKSNAP, ['daemon', '--dir', dir], path.join(dir, 'api.sock'));
  try {
    const attach = ['attach', stage.disk, '--name', 'bench', '--dir', dir, '--json'];
    const { stdout } = await run(BLKSNAP, attach);
    await prepare(dir);
    return { uri: (JSON.parse(stdout) as { uri: string }).uri, stop: () => server.stop() };
  } catch (error) {
    await server.stop();
    throw error;
  }
}

export const CONTENDERS: readonly Contender[] = [
  {
    name: 'blksnap-serve',
    title: 'blksnap, no filter',
    needs: [],
    start: (stage) => startOnSocket(stage, BLKSNAP, (socket) => ['serve', stage.disk, '--socket', socket]),
  },
  {
    name: 'blksnap-tracker',
    title: 'blksnap, tracker attached',
    needs: [],
    start: (stage) => startDaemon(stage, async () => {}),
  },
  {
    name: 'blksnap-snapshot',
    title: 'blksnap, snapshot held',
    needs: [],
    start: (stage) =>
      startDaemon(stage, async (dir) => {
        await run(BLKSNAP, ['snapshot', 'create', 'bench', '--storage', stage.dir, '--dir', dir]);
      }),
  },
  {
    name: 'nbdkit-file',
    title: 'nbdkit file',
    needs: ['nbdkit'],
    start: (stage) =>
      startOnSocket(stage, 'nbdkit', (socket) => ['--foreground', '--unix', socket, 'file', stage.disk]),
  },
  {
    name: 'qemu-nbd',
    title: 'qemu-nbd',
    needs: ['qemu-nbd'],
    start: (stage) =>
      startOnSocket(stage, 'qemu-nbd', (socket) => ['--persistent', '--format=raw', `--socket=${socket}`, stage.disk]),
  },
];
