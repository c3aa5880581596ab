/** Our own servers under measurement: `blksnap serve`, and the daemon with disks attached. */

import path from 'node:path';
import { Client } from '../src/api/client.ts';
import { startServer } from './server-process.ts';
import type { ServerProcess } from './server-process.ts';

export const BLKSNAP = path.join(import.meta.dirname, '../bin/blksnap');

export type Driver = 'uring' | 'portable';

export interface Daemon extends ServerProcess {
  readonly dir: string;
  readonly client: Client;
}

export async function startDaemon(
  dir: string,
  driver: Driver = 'uring',
  options: readonly string[] = [],
): Promise<Daemon> {
  const args = ['daemon', '--dir', dir, '--io', driver, '--log-level', 'error', ...options];
  const server = await startServer(BLKSNAP, args, path.join(dir, 'api.sock'));
  return { ...server, dir, client: new Client({ dir }) };
}

/** Runs `use` with a daemon that ends afterwards, however it goes. */
export async function withDaemon<T>(
  { dir, driver, options }: { readonly dir: string; readonly driver?: Driver; readonly options?: readonly string[] },
  use: (daemon: Daemon) => Promise<T>,
): Promise<T> {
  const daemon = await startDaemon(path.join(dir, 'daemon'), driver, options);
  try {
    return await use(daemon);
  } finally {
    await daemon.stop();
  }
}
