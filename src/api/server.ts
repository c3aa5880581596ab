/** The API on a unix socket that only its owner may use. */

import fs from 'node:fs';
import type { ListenOptions } from 'node:net';
import { createAdaptorServer } from '@hono/node-server';
import type { ServerType } from '@hono/node-server';
import type { Daemon } from '../daemon/daemon.ts';
import type { Log } from '../daemon/log.ts';
import { toBlksnapError } from '../util/errors.ts';
import { createApp } from './app.ts';

/** How long requests under way may take to end. */
const GRACE_MS = 2000;

export interface ApiServer {
  /** Takes no more requests, lets those under way end, removes the socket. Safe to call twice. */
  close(): Promise<void>;
}

export async function serveApi(socketPath: string, daemon: Daemon, log: Log): Promise<ApiServer> {
  const ending = new AbortController();
  const app = createApp({ daemon, ending: ending.signal, log });
  const server = createAdaptorServer({ fetch: app.fetch });
  // A leftover of a killed daemon: the directory's lock says that nobody listens on it.
  fs.rmSync(socketPath, { force: true });
  const mask = process.umask(0o177);
  try {
    return await runServer(server, { path: socketPath }, ending);
  } finally {
    process.umask(mask);
  }
}

/** Listens; what is returned ends it, and aborts `ending`. Errors: EADDRINUSE and the like. */
export async function runServer(server: ServerType, where: ListenOptions, ending: AbortController): Promise<ApiServer> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) => reject(toBlksnapError(cause, 'Cannot serve the API')));
    server.listen(where, resolve);
  });
  return {
    async close() {
      ending.abort();
      if (!server.listening) return;
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      const impatience = setTimeout(() => {
        if ('closeAllConnections' in server) server.closeAllConnections();
      }, GRACE_MS);
      if ('closeIdleConnections' in server) server.closeIdleConnections();
      await closed;
      clearTimeout(impatience);
    },
  };
}
