/** NBD servers that fio measures: ours, and the peers. A new one is a row: what it needs, and how to start it.
 *  Only one runs at a time, so the file is never shared. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { BLKSNAP, startDaemon } from './blksnap-server.ts';
import type { Driver } from './blksnap-server.ts';
import type { Stage } from './measurement.ts';
import { startForkingServer, startServer } from './server-process.ts';

export interface RunningServer {
  readonly pid: number;
  readonly uri: string;
  /** Of the frozen image, where the server holds a snapshot. */
  readonly imageUri?: string;
  stop(): Promise<void>;
}

export interface ServerRow {
  readonly name: string;
  readonly title: string;
  readonly needs: readonly string[];
  start(stage: Stage): Promise<RunningServer>;
}

type Arguments = (socket: string, stage: Stage) => readonly string[];

/** A program that exports the disk under `exportName` on one socket. */
function program(
  row: Omit<ServerRow, 'needs' | 'start'>,
  command: string,
  args: Arguments,
  exportName = '',
): ServerRow {
  return {
    ...row,
    needs: command === BLKSNAP ? [] : [command],
    start: async (stage) => {
      const socket = path.join(stage.dir, 'nbd.sock');
      const server = await startServer(command, args(socket, stage), socket);
      return { ...server, uri: `nbd+unix:///${exportName}?socket=${socket}` };
    },
  };
}

export function served(name: string, title: string, driver: Driver): ServerRow {
  return program({ name, title }, BLKSNAP, (socket, { disk }) => ['serve', disk, '--socket', socket, '--io', driver]);
}

/** The daemon with the disk attached, which puts the tracker on it; with `held`, a snapshot in the same place, or in memory. */
export function tracked(
  name: string,
  title: string,
  { driver = 'uring', held = false }: { readonly driver?: Driver; readonly held?: boolean | 'in memory' } = {},
): ServerRow {
  return {
    name,
    title,
    needs: [],
    start: async (stage) => {
      const daemon = await startDaemon(path.join(stage.dir, 'daemon'), driver);
      try {
        const { uri } = await daemon.client.attach({ path: stage.disk, name: 'bench' });
        const stop = (): Promise<void> => daemon.stop();
        if (!held) return { pid: daemon.pid, uri, stop };
        const storage = held === 'in memory' ? ':memory:' : stage.dir;
        const snapshot = await daemon.client.createSnapshot({ disks: ['bench'], storage });
        return { pid: daemon.pid, uri, imageUri: snapshot.images[0]!.uri, stop };
      } catch (error) {
        await daemon.stop();
        throw error;
      }
    },
  };
}

/** Our server over a disk that does nothing: what this client can do at most with it. */
export const NOTHING: ServerRow = {
  name: 'blksnap-nothing',
  title: 'limit: blksnap over a disk that does nothing',
  needs: [],
  start: async ({ dir, disk }) => {
    const daemon = await startDaemon(path.join(dir, 'daemon'));
    try {
      const table = `0 ${fs.statSync(disk).size / 512} zero`;
      const { uri } = await daemon.client.createMapped({ name: 'nothing', table });
      return { pid: daemon.pid, uri, stop: () => daemon.stop() };
    } catch (error) {
      await daemon.stop();
      throw error;
    }
  },
};

const fileNode = (file: string, node: string, aio: string): string =>
  `driver=file,node-name=${node},filename=${file},aio=${aio}`;

const qemuServer = (socket: string): string[] => [
  '--nbd-server',
  `addr.type=unix,addr.path=${socket},max-connections=0`,
];

function qemuNbd(aio: 'threads' | 'io_uring'): ServerRow {
  return program({ name: `qemu-nbd-${aio}`, title: `qemu-nbd, ${aio}` }, 'qemu-nbd', (socket, { disk }) => [
    '--persistent',
    '--shared=0',
    '--format=raw',
    `--aio=${aio}`,
    `--socket=${socket}`,
    disk,
  ]);
}

/** QEMU's copy-before-write: what is overwritten goes to a target first, in clusters of 64 KiB; snapshot-access
 *  is the frozen image. */
function qemuCopyBeforeWrite(format: 'raw' | 'qcow2'): ServerRow {
  const name = `qemu-cbw-${format}`;
  return {
    name,
    title: `qemu copy-before-write, ${format} target`,
    needs: ['qemu-storage-daemon', 'qemu-img'],
    start: async (stage) => {
      const target = path.join(stage.dir, `target.${format}`);
      const size = String(fs.statSync(stage.disk).size);
      execFileSync('qemu-img', ['create', '-q', '-f', format, target, size]);
      const socket = path.join(stage.dir, 'nbd.sock');
      const blockdevs = [
        fileNode(stage.disk, 'disk', 'threads'),
        fileNode(target, 'target-file', 'threads'),
        `driver=${format},node-name=target,file=target-file`,
        'driver=copy-before-write,node-name=origin,file=disk,target=target',
        'driver=snapshot-access,node-name=image,file=origin',
      ].flatMap((blockdev) => ['--blockdev', blockdev]);
      const exports = ['--export', 'type=nbd,id=o,node-name=origin,name=disk,writable=on'];
      const image = ['--export', 'type=nbd,id=i,node-name=image,name=image'];
      const args = [...blockdevs, ...qemuServer(socket), ...exports, ...image];
      const server = await startServer('qemu-storage-daemon', args, socket);
      const uri = (node: string): string => `nbd+unix:///${node}?socket=${socket}`;
      return { ...server, uri: uri('disk'), imageUri: uri('image') };
    },
  };
}

export const NBDKIT_FILE = program({ name: 'nbdkit-file', title: 'nbdkit file' }, 'nbdkit', (socket, { disk }) => [
  '--foreground',
  '--unix',
  socket,
  'file',
  disk,
]);

/** Redirects writes to an overlay of its own, in chunks of 4 KiB; there is no frozen image beside it. */
export const NBDKIT_COW = program({ name: 'nbdkit-cow', title: 'nbdkit cow' }, 'nbdkit', (socket, { disk }) => [
  '--foreground',
  '--unix',
  socket,
  '--filter=cow',
  'file',
  disk,
  'cow-block-size=4096',
]);

export const QEMU_STORAGE_DAEMON = program(
  { name: 'qemu-storage-daemon', title: 'qemu-storage-daemon' },
  'qemu-storage-daemon',
  (socket, { disk }) => [
    '--blockdev',
    fileNode(disk, 'disk', 'threads'),
    ...qemuServer(socket),
    '--export',
    'type=nbd,id=disk,node-name=disk,name=disk,writable=on',
  ],
  'disk',
);

const NBD_SERVER: ServerRow = {
  name: 'nbd-server',
  title: 'nbd-server',
  needs: ['nbd-server'],
  start: async ({ dir, disk }) => {
    const [socketPath, pidFile, config] = ['nbd.sock', 'nbd.pid', 'nbd.conf'].map((name) => path.join(dir, name));
    const filesize = fs.statSync(disk).size;
    const text = `[generic]\nunixsock = ${socketPath}\n[disk]\nexportname = ${disk}\nfilesize = ${filesize}\n`;
    fs.writeFileSync(config!, text);
    const places = { pidFile: pidFile!, socketPath: socketPath! };
    const server = await startForkingServer('nbd-server', ['-C', config!, '-p', pidFile!], places);
    return { ...server, uri: `nbd+unix:///disk?socket=${socketPath}` };
  },
};

export const QEMU_CBW = [qemuCopyBeforeWrite('raw'), qemuCopyBeforeWrite('qcow2')] as const;

/** Those that only serve a file. */
export const PEERS: readonly ServerRow[] = [
  NBDKIT_FILE,
  NBD_SERVER,
  qemuNbd('threads'),
  qemuNbd('io_uring'),
  QEMU_STORAGE_DAEMON,
];
