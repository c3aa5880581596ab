/** The API on a TCP port: the same as on the unix socket, for those who bring the token.
 *
 *  Whoever has the token is the daemon's owner: it can attach every file that the daemon can open, and run freeze hooks.
 *  Whoever has not costs little: so many connections at most, so long for a handshake and a request's head, and a wrong
 *  token is answered late, with the end of the connection; its body, and what else is sent behind it, is never read. */

import { setMaxListeners } from 'node:events';
import http from 'node:http';
import https from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { createAdaptorServer } from '@hono/node-server';
import type { Http2Bindings, HttpBindings } from '@hono/node-server';
import { MIN_TLS_VERSION } from '../nbd/tls-credentials.ts';
import { createApp } from './app.ts';
import type { ApiContext } from './context.ts';
import { runServer } from './server.ts';
import type { ApiServer } from './server.ts';
import type { TcpApi } from './tcp-api.ts';
import { bringsToken } from './token.ts';

const MAX_CONNECTIONS = 256;
const HEAD_TIMEOUT_MS = 10_000;
/** With the limit on connections, some 500 guesses a second. */
const REFUSAL_DELAY_MS = 500;

/** Errors: EADDRINUSE and the like. */
export async function serveApiOnTcp(
  context: Omit<ApiContext, 'ending'>,
  { host, port, token, certificate }: TcpApi,
): Promise<ApiServer & { readonly url: string }> {
  const ending = new AbortController();
  // As many as there are refusals under way.
  setMaxListeners(0, ending.signal);
  const app = createApp({ ...context, ending: ending.signal });
  /** Connections on which a wrong token came: what follows there is not heard, whatever it brings. */
  const refused = new WeakSet<Socket>();
  const fetch = (request: Request, { incoming }: HttpBindings | Http2Bindings): Response | Promise<Response> => {
    const { socket } = incoming;
    if (!refused.has(socket) && bringsToken(request.headers.get('authorization'), token)) return app.fetch(request);
    refused.add(socket);
    socket.pause();
    return refusal(ending.signal);
  };
  const limits = { headersTimeout: HEAD_TIMEOUT_MS, connectionsCheckingInterval: HEAD_TIMEOUT_MS / 2 };
  const server =
    certificate === null
      ? createAdaptorServer({ fetch, createServer: http.createServer, serverOptions: limits })
      : createAdaptorServer({
          fetch,
          createServer: https.createServer,
          serverOptions: { ...limits, ...certificate, minVersion: MIN_TLS_VERSION, handshakeTimeout: HEAD_TIMEOUT_MS },
        });
  server.maxConnections = MAX_CONNECTIONS;
  const running = await runServer(server, { host, port }, ending);
  const bound = server.address() as AddressInfo;
  const shown = host.includes(':') ? `[${host}]` : host;
  return { ...running, url: `${certificate === null ? 'http' : 'https'}://${shown}:${bound.port}` };
}

/** Says nothing of what there is, nor what was wrong. */
async function refusal(ending: AbortSignal): Promise<Response> {
  // The server's end is no failure of the wait.
  await sleep(REFUSAL_DELAY_MS, undefined, { signal: ending }).catch(() => {});
  const error = { code: 'EACCES', message: 'Cannot use the API: it wants its token' };
  const headers = { 'www-authenticate': 'Bearer', connection: 'close' };
  return Response.json({ error }, { status: 401, headers });
}
