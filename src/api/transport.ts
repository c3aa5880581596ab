/** How a client reaches the daemon: by its unix socket, or by TCP with the token, in TLS off this machine. */

import fs from 'node:fs';
import type https from 'node:https';
import { daemonPaths } from '../daemon/paths.ts';
import { isLocal } from '../nbd/address.ts';
import { MIN_TLS_VERSION } from '../nbd/tls-credentials.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { readToken } from './token.ts';

export interface ClientOptions {
  /** The daemon's directory; default as the daemon's own. */
  readonly dir?: string | undefined;
  /** `https://host:port` of a daemon that offers its API over TCP; `http:` on loopback alone. Instead of `dir`. */
  readonly url?: string | undefined;
  /** The file that holds the token: with `url`. */
  readonly tokenFile?: string | undefined;
  /** The certificate of the authority that signed the daemon's; default: those that Node trusts. */
  readonly caFile?: string | undefined;
  /** Aborted: whatever is asked under way or later fails with ECANCELED. */
  readonly signal?: AbortSignal | undefined;
}

export interface Transport {
  /** For messages. */
  readonly place: string;
  /** The daemon's NBD socket for its owner; null over TCP, where the daemon's files need not be at hand. */
  readonly nbdSocket: string | null;
  readonly isSecure: boolean;
  readonly request: https.RequestOptions;
  readonly headers: Readonly<Record<string, string>>;
}

/** Errors: EINVAL for a URL that would carry the token in plain, or none; EACCES for a token that others can read. */
export function openTransport({ dir, url, tokenFile, caFile }: ClientOptions): Transport {
  if (url === undefined) {
    if (tokenFile !== undefined || caFile !== undefined) {
      throw new BlksnapError('EINVAL', 'Cannot use a token or an authority on the unix socket; give --api URL as well');
    }
    const { run, apiSocket, nbdSocket } = daemonPaths(dir);
    return { place: run, nbdSocket, isSecure: false, request: { socketPath: apiSocket }, headers: {} };
  }
  const { protocol, hostname, port, username, password } = parsed(url);
  const host = hostname.replace(/^\[(.*)\]$/, '$1');
  const isSecure = protocol === 'https:';
  if (!isSecure && (protocol !== 'http:' || !isLocal({ kind: 'tcp', host, port: 0 }))) {
    throw new BlksnapError('EINVAL', `Cannot use API at "${host}": want https://host:port, or http: on loopback`);
  }
  if (username !== '' || password !== '') {
    throw new BlksnapError('EINVAL', 'Cannot use an API URL with a user or password; give --api-token FILE');
  }
  if (tokenFile === undefined) {
    throw new BlksnapError('EINVAL', `Cannot use the API at "${url}" without its token; give --api-token FILE`);
  }
  const authority = caFile === undefined ? {} : { ca: readAuthority(caFile) };
  return {
    place: url,
    nbdSocket: null,
    isSecure,
    request: { host, port: port || (isSecure ? 443 : 80), minVersion: MIN_TLS_VERSION, ...authority },
    headers: { authorization: `Bearer ${readToken(tokenFile)}` },
  };
}

function parsed(url: string): URL {
  try {
    return new URL(url);
  } catch {
    throw new BlksnapError('EINVAL', 'Cannot read API URL: want https://host:port');
  }
}

function readAuthority(file: string): Buffer {
  try {
    return fs.readFileSync(file);
  } catch (cause) {
    throw toBlksnapError(cause, 'Cannot read the certificate of --api-ca');
  }
}
