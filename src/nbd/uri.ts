/** NBD URIs (doc/uri.md of the NetworkBlockDevice project):
 *
 *      nbd://host:port/export            nbd+unix:///export?socket=/path
 *
 *  Taken apart by RFC 3986's own rules: the URL class would drop "." and ".." from export names. */

import type { SocketAddress } from '../io/reactor.ts';
import { BlksnapError } from '../util/errors.ts';
import { DEFAULT_PORT } from './protocol.ts';

export interface NbdUri {
  readonly address: SocketAddress;
  /** Empty for the server's default export. */
  readonly exportName: string;
}

const COMPONENTS = /^([a-z][a-z+.-]*):(?:\/\/([^/?#]*))?([^?#]*)(?:\?([^#]*))?$/i;
const AUTHORITY = /^(?:[^@]*@)?(\[[^\]]+\]|[^:]*)(?::(\d*))?$/;

function invalid(uri: string, reason: string): BlksnapError {
  return new BlksnapError(
    'EINVAL',
    `Cannot read NBD URI "${uri}": ${reason}; want nbd://host:port/export or nbd+unix:///export?socket=/path`,
  );
}

function decode(text: string, uri: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid(uri, `bad percent-encoding in "${text}"`);
  }
}

/** Errors: EINVAL; EOPNOTSUPP for a URI that asks for TLS. */
export function parseNbdUri(uri: string): NbdUri {
  const match = COMPONENTS.exec(uri);
  if (match === null) throw invalid(uri, 'not a URI');
  const [, scheme = '', authority = '', path = '', query = ''] = match;
  const socket = parseQuery(query, uri);
  const exportName = decode(path.replace(/^\//, ''), uri);
  switch (scheme.toLowerCase()) {
    case 'nbd':
      if (socket !== undefined) throw invalid(uri, 'a socket path needs nbd+unix:');
      return { address: parseAuthority(authority, uri), exportName };
    case 'nbd+unix':
      if (socket === undefined || socket === '') throw invalid(uri, 'no socket parameter');
      return { address: { kind: 'unix', path: socket }, exportName };
    case 'nbds':
    case 'nbds+unix':
      throw new BlksnapError('EOPNOTSUPP', `Cannot use "${uri}": TLS is not supported; use nbd: or nbd+unix:`);
    default:
      throw invalid(uri, `unknown scheme "${scheme}"`);
  }
}

/** The socket parameter, if there is one. */
function parseQuery(query: string, uri: string): string | undefined {
  let socket: string | undefined;
  for (const pair of query.split('&')) {
    const [key = '', ...value] = pair.split('=');
    if (key === 'socket') socket = decode(value.join('='), uri);
    else if (key !== '' && !key.startsWith('x-')) throw invalid(uri, `unknown parameter "${key}"`);
  }
  return socket;
}

function parseAuthority(authority: string, uri: string): SocketAddress {
  const match = AUTHORITY.exec(authority);
  const host = decode(match?.[1] ?? '', uri).replace(/^\[(.*)\]$/, '$1');
  if (host === '') throw invalid(uri, 'no host');
  const port = match![2] === undefined || match![2] === '' ? DEFAULT_PORT : Number(match![2]);
  if (port > 65535) throw invalid(uri, `port ${port}`);
  return { kind: 'tcp', host, port };
}

/** The URI of an export; `parseNbdUri` gives back the same. */
export function formatNbdUri(uri: NbdUri): string {
  const name = encodePath(uri.exportName);
  const { address } = uri;
  switch (address.kind) {
    case 'unix':
      return `nbd+unix:///${name}?socket=${encodePath(address.path)}`;
    case 'tcp': {
      const host = address.host.includes(':') ? `[${address.host}]` : address.host;
      return `nbd://${host}${address.port === DEFAULT_PORT ? '' : `:${address.port}`}/${name}`;
    }
  }
}

function encodePath(text: string): string {
  return text.split('/').map(encodeURIComponent).join('/');
}
