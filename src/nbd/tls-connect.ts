/** The client's way through TLS: connects, has the server begin TLS, checks who it is, and gives back a descriptor on
 *  which the handshake goes on after the greeting. Never goes on without TLS.
 *
 *  Uses Node's event loop: for threads whose reactor leaves time for it. */

import net from 'node:net';
import tls from 'node:tls';
import type { SocketAddress } from '../io/reactor.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { requestStartTls } from './start-tls.ts';
import { MIN_TLS_VERSION, PSK_CIPHERS } from './tls-credentials.ts';
import type { ClientCredentials } from './tls-credentials.ts';
import { pumpTls } from './tls-pump.ts';

export interface TlsConnectOptions {
  readonly credentials: ClientCredentials;
  /** The name that the server's certificate must have; default: the host that is connected to. */
  readonly hostname?: string | undefined;
  readonly limitMs: number;
}

export interface SecureLine {
  /** The caller's. */
  readonly fd: number;
  /** The handshake flags of the server's greeting. */
  readonly flags: number;
}

/** Errors: ECONNREFUSED and the like; EOPNOTSUPP when the server has no TLS; EACCES
 *  when one does not accept the other; ETIMEDOUT. */
export async function connectTls(address: SocketAddress, options: TlsConnectOptions): Promise<SecureLine> {
  const socket =
    address.kind === 'unix'
      ? net.connect({ path: address.path })
      : net.connect({ host: address.host, port: address.port, noDelay: true });
  let timedOut = false;
  const timeout = setTimeout(() => {
    timedOut = true;
    socket.destroy();
  }, options.limitMs);
  try {
    await connected(socket);
    const flags = await requestStartTls(socket);
    return { fd: pumpTls(await secured(socket, address, options)), flags };
  } catch (cause) {
    socket.destroy();
    if (timedOut) throw new BlksnapError('ETIMEDOUT', `The NBD server did not begin TLS in ${options.limitMs} ms`);
    throw toBlksnapError(cause);
  } finally {
    clearTimeout(timeout);
  }
}

function connected(socket: net.Socket): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.on('error', (cause) => reject(toBlksnapError(cause, 'Cannot connect')));
    socket.once('connect', resolve);
  });
}

function secured(socket: net.Socket, address: SocketAddress, options: TlsConnectOptions): Promise<tls.TLSSocket> {
  const host = options.hostname ?? (address.kind === 'unix' ? 'localhost' : address.host);
  return new Promise((resolve, reject) => {
    const secure = tls.connect({ socket, ...tlsOptions(options.credentials, host) });
    const failed = (cause: Error): void => {
      secure.destroy();
      const words = cause.message.replace(/\.+$/, '');
      reject(new BlksnapError('EACCES', `Cannot agree on TLS with the NBD server: ${words}`, { cause }));
    };
    secure.once('error', failed).once('close', () => failed(new Error('the server closed the connection')));
    secure.once('secureConnect', () => {
      secure.off('error', failed);
      resolve(secure);
    });
  });
}

function tlsOptions(credentials: ClientCredentials, host: string): tls.ConnectionOptions {
  switch (credentials.kind) {
    case 'x509':
      // An address has no name to ask for; it is still checked against the certificate.
      return { ...credentials.options, host, ...(net.isIP(host) === 0 ? { servername: host } : {}) };
    case 'psk': {
      const { name, key } = credentials;
      return {
        minVersion: MIN_TLS_VERSION,
        ciphers: PSK_CIPHERS,
        pskCallback: () => ({ identity: name, psk: key }),
        // There is no certificate: who knows the key is the server.
        checkServerIdentity: () => undefined,
      };
    }
  }
}
