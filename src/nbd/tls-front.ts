/** Where clients that need TLS arrive: listens, has each client begin TLS before anything else, and passes it on
 *  as one end of a socket pair, with the name that it has proved. The server behind goes on after the greeting, and
 *  knows nothing else of what was said before TLS.
 *
 *  Lives on a thread with Node's event loop, never on a reactor's. A session is never resumed: who comes again proves
 *  again who it is. */

import { constants } from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import tls from 'node:tls';
import { KEEPALIVE_IDLE_S } from '../io/reactor.ts';
import type { SocketAddress } from '../io/reactor.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { freshState } from './handshake.ts';
import type { HandshakeState } from './handshake.ts';
import { NAMELESS, provenName } from './peer.ts';
import type { Peer } from './peer.ts';
import type { Visitor } from './server.ts';
import { awaitStartTls } from './start-tls.ts';
import { MIN_TLS_VERSION, PSK_CIPHERS } from './tls-credentials.ts';
import type { ServerCredentials } from './tls-credentials.ts';
import { pumpTls } from './tls-pump.ts';

const HANDSHAKE_LIMIT_MS = 30_000;
/** Connections in all, far above what a server takes: each costs a few hundred KiB at most. */
const CONNECTION_LIMIT = 512;

export interface TlsFrontOptions {
  readonly credentials: ServerCredentials;
  /** Takes a client. May throw only where it has not taken it. */
  readonly onClient: (client: Visitor) => void;
  /** Hears why a connection was refused or dropped. */
  readonly onDropped?: (reason: string) => void;
  readonly handshakeLimitMs?: number;
}

export class TlsFront {
  readonly #options: TlsFrontOptions;
  readonly #listener: net.Server;
  /** Of clients that do without the zeros after EXPORT_NAME, and of those that do not: all that a TLS socket has to
   *  remember of what came before it. */
  readonly #modern: tls.Server;
  readonly #old: tls.Server;
  readonly #limitMs: number;
  /** Every connection, from the accept to its end. */
  readonly #sockets = new Set<net.Socket>();
  /** Names of pre-shared keys that are being proved. */
  readonly #keyNames = new WeakMap<net.Socket, string>();

  /** Errors: EADDRINUSE, EACCES and the like. */
  static async listen(address: SocketAddress, options: TlsFrontOptions): Promise<TlsFront> {
    const front = new TlsFront(options);
    await front.#listen(address);
    return front;
  }

  private constructor(options: TlsFrontOptions) {
    this.#options = options;
    this.#limitMs = options.handshakeLimitMs ?? HANDSHAKE_LIMIT_MS;
    const keepAlive = { keepAlive: true, keepAliveInitialDelay: KEEPALIVE_IDLE_S * 1000 };
    this.#listener = net.createServer({ noDelay: true, ...keepAlive }, (socket) => void this.#arrive(socket));
    this.#listener.maxConnections = CONNECTION_LIMIT;
    this.#listener.on('drop', () => this.#dropped(`more than ${CONNECTION_LIMIT} connections`));
    this.#modern = this.#secureServer(freshState(true));
    this.#old = this.#secureServer(freshState(false));
  }

  #secureServer(state: HandshakeState): tls.Server {
    const server = tls.createServer({ ...this.#tlsOptions(), handshakeTimeout: this.#limitMs });
    server.on('secureConnection', (secure) => this.#admit(secure, state));
    server.on('tlsClientError', (cause, secure) => {
      this.#dropped(`TLS failed: ${cause.message}`);
      secure.destroy();
    });
    return server;
  }

  #tlsOptions(): tls.TlsOptions {
    const { credentials } = this.#options;
    const secureOptions = constants.SSL_OP_NO_TICKET;
    switch (credentials.kind) {
      case 'x509': {
        const { options, verifyPeer } = credentials;
        return { ...options, secureOptions, requestCert: verifyPeer, rejectUnauthorized: verifyPeer };
      }
      case 'psk': {
        const pskCallback = (socket: tls.TLSSocket, name: string): Buffer | null => {
          const key = credentials.keys.get(name) ?? null;
          if (key !== null) this.#keyNames.set(socket, name);
          return key;
        };
        // Without a certificate, the parameters of DHE have to come from somewhere.
        return { secureOptions, minVersion: MIN_TLS_VERSION, ciphers: PSK_CIPHERS, dhparam: 'auto', pskCallback };
      }
    }
  }

  /** Where it listens, with the port that the system chose for port 0. */
  get address(): SocketAddress {
    const bound = this.#listener.address();
    if (bound === null || typeof bound === 'string') return { kind: 'unix', path: bound ?? '' };
    return { kind: 'tcp', host: bound.address, port: bound.port };
  }

  async #listen(address: SocketAddress): Promise<void> {
    const where = address.kind === 'unix' ? { path: address.path } : { host: address.host, port: address.port };
    const mask = process.umask(0o177);
    try {
      await new Promise<void>((resolve, reject) => {
        this.#listener.once('error', (cause) => reject(toBlksnapError(cause, 'Cannot listen for TLS')));
        this.#listener.listen(where, resolve);
      });
    } finally {
      process.umask(mask);
    }
    if (address.kind === 'unix') fs.chmodSync(address.path, 0o600);
  }

  async #arrive(socket: net.Socket): Promise<void> {
    this.#sockets.add(socket);
    socket.on('error', () => {}).once('close', () => this.#sockets.delete(socket));
    const timeout = setTimeout(() => {
      this.#dropped(`no TLS in ${this.#limitMs} ms`);
      socket.destroy();
    }, this.#limitMs);
    try {
      const state = await awaitStartTls(socket);
      if (state === null) socket.destroySoon();
      else (state.noZeroes ? this.#modern : this.#old).emit('connection', socket);
    } catch (cause) {
      if (!socket.destroyed) this.#dropped(toBlksnapError(cause).message);
      socket.destroy();
    } finally {
      clearTimeout(timeout);
    }
  }

  #admit(secure: tls.TLSSocket, state: HandshakeState): void {
    let fd = -1;
    try {
      const peer = this.#peerOf(secure);
      secure.disableRenegotiation();
      fd = pumpTls(secure);
      this.#options.onClient({ fd, peer, state, received: new Uint8Array(0) });
    } catch (cause) {
      if (fd >= 0) fs.closeSync(fd);
      this.#dropped(toBlksnapError(cause).message);
      secure.destroy();
    }
  }

  /** Errors: EACCES when it has no name that can be used, though it must. */
  #peerOf(secure: tls.TLSSocket): Peer {
    const { credentials } = this.#options;
    if (credentials.kind === 'x509' && !credentials.verifyPeer) return NAMELESS;
    const given: unknown =
      credentials.kind === 'psk' ? this.#keyNames.get(secure) : secure.getPeerCertificate().subject?.CN;
    const name = provenName(given);
    if (name === null) throw new BlksnapError('EACCES', "The client's certificate has no name (CN) that can be used");
    return { kind: 'named', name };
  }

  #dropped(reason: string): void {
    this.#options.onDropped?.(reason);
  }

  /** Stops listening and ends every connection. Safe to call twice. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#listener.close(() => resolve()));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }
}
