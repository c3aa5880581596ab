/** NBD URIs (doc/uri.md of the NetworkBlockDevice project), and libnbd's parameters for TLS:
 *
 *      nbd://host:port/export            nbd+unix:///export?socket=/path
 *      nbds://name@host:port/export      nbds+unix://name@/export?socket=/path
 *
 *  The name is that of a pre-shared key. Parameters: tls-certificates=DIR, tls-psk-file=FILE, tls-hostname=NAME.
 *
 *  Taken apart by RFC 3986's own rules: the URL class would drop "." and ".." from export names. */

import type { SocketAddress } from '../io/reactor.ts';
import { BlksnapError } from '../util/errors.ts';
import { DEFAULT_PORT } from './protocol.ts';
import type { TlsFiles } from './tls-credentials.ts';

export interface NbdUri {
  readonly address: SocketAddress;
  /** Empty for the server's default export. */
  readonly exportName: string;
  /** Undefined: without TLS. */
  readonly tls?: UriTls | undefined;
}

/** What a URI says of TLS; the files that it names hold the secrets. */
export interface UriTls extends TlsFiles {
  readonly pskName?: string | undefined;
  /** The name that the server's certificate must have, where it is not the host's. */
  readonly hostname?: string | undefined;
}

const COMPONENTS = /^([a-z][a-z+.-]*):(?:\/\/([^/?#]*))?([^?#]*)(?:\?([^#]*))?$/i;
const AUTHORITY = /^(?:([^@]*)@)?(\[[^\]]+\]|[^:]*)(?::(\d*))?$/;

/** What somebody took for a place for a password. */
const PASSWORD = /(:\/\/[^/?#:@]*):[^/?#]*@/;

function invalid(uri: string, reason: string): BlksnapError {
  return new BlksnapError(
    'EINVAL',
    `Cannot read NBD URI "${uri.replace(PASSWORD, '$1:...@')}": ${reason}; want nbd://host:port/export or nbd+unix:///export?socket=/path, or nbds for TLS`,
  );
}

function decode(text: string, uri: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid(uri, `bad percent-encoding in "${text}"`);
  }
}

/** Errors: EINVAL. */
export function parseNbdUri(uri: string): NbdUri {
  const match = COMPONENTS.exec(uri);
  if (match === null) throw invalid(uri, 'not a URI');
  if (PASSWORD.test(uri)) throw invalid(uri, 'it holds a password; keys are in files, tls-psk-file=FILE');
  const [, scheme = '', authority = '', path = '', query = ''] = match;
  const parameters = parseQuery(query, uri);
  const socket = parameters.get('socket');
  const exportName = decode(path.replace(/^\//, ''), uri);
  const tls = /^nbds/i.test(scheme) ? { tls: tlsOf(parameters, AUTHORITY.exec(authority)?.[1], uri) } : {};
  switch (scheme.toLowerCase()) {
    case 'nbd':
    case 'nbds':
      if (socket !== undefined) throw invalid(uri, 'a socket path needs nbd+unix:');
      return { address: parseAuthority(authority, uri), exportName, ...tls };
    case 'nbd+unix':
    case 'nbds+unix':
      if (socket === undefined || socket === '') throw invalid(uri, 'no socket parameter');
      return { address: { kind: 'unix', path: socket }, exportName, ...tls };
    default:
      throw invalid(uri, `unknown scheme "${scheme}"`);
  }
}

const PARAMETERS = new Set(['socket', 'tls-certificates', 'tls-psk-file', 'tls-hostname']);

function parseQuery(query: string, uri: string): Map<string, string> {
  const parameters = new Map<string, string>();
  for (const pair of query.split('&')) {
    const [key = '', ...value] = pair.split('=');
    if (PARAMETERS.has(key)) parameters.set(key, decode(value.join('='), uri));
    else if (key !== '' && !key.startsWith('x-')) throw invalid(uri, `unknown parameter "${key}"`);
  }
  return parameters;
}

function tlsOf(parameters: ReadonlyMap<string, string>, user: string | undefined, uri: string): UriTls {
  const [certificates, psk] = [parameters.get('tls-certificates'), parameters.get('tls-psk-file')];
  const hostname = parameters.get('tls-hostname');
  return {
    ...(user === undefined || user === '' ? {} : { pskName: decode(user, uri) }),
    ...(certificates === undefined ? {} : { certificates }),
    ...(psk === undefined ? {} : { psk }),
    ...(hostname === undefined ? {} : { hostname }),
  };
}

function parseAuthority(authority: string, uri: string): SocketAddress {
  const match = AUTHORITY.exec(authority);
  const host = decode(match?.[2] ?? '', uri).replace(/^\[(.*)\]$/, '$1');
  if (host === '') throw invalid(uri, 'no host');
  const port = match![3] === undefined || match![3] === '' ? DEFAULT_PORT : Number(match![3]);
  if (port > 65535) throw invalid(uri, `port ${port}`);
  return { kind: 'tcp', host, port };
}

/** The URI of an export; `parseNbdUri` gives back the same. */
export function formatNbdUri({ address, exportName, tls }: NbdUri): string {
  const name = encodePath(exportName);
  const scheme = tls === undefined ? 'nbd' : 'nbds';
  const user = tls?.pskName === undefined ? '' : `${encodeURIComponent(tls.pskName)}@`;
  const parameters = [
    ['socket', address.kind === 'unix' ? address.path : undefined],
    ['tls-certificates', tls?.certificates],
    ['tls-psk-file', tls?.psk],
    ['tls-hostname', tls?.hostname],
  ].flatMap(([key, value]) => (value === undefined ? [] : [`${key}=${encodePath(value)}`]));
  const query = parameters.length === 0 ? '' : `?${parameters.join('&')}`;
  switch (address.kind) {
    case 'unix':
      return `${scheme}+unix://${user}/${name}${query}`;
    case 'tcp': {
      const host = address.host.includes(':') ? `[${address.host}]` : address.host;
      return `${scheme}://${user}${host}${address.port === DEFAULT_PORT ? '' : `:${address.port}`}/${name}${query}`;
    }
  }
}

function encodePath(text: string): string {
  return text.split('/').map(encodeURIComponent).join('/');
}
