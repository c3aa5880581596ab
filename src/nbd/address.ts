/** Addresses to listen on, as people write them. URIs are uri.ts's. */

import { isIPv4 } from 'node:net';
import type { SocketAddress } from '../io/reactor.ts';
import { BlksnapError } from '../util/errors.ts';

/** Parses `host:port`, `[::1]:10809` and `:port` (every interface). Errors: EINVAL. */
export function parseHostPort(text: string): SocketAddress {
  const match = /^(?:\[(?<six>[^\]]+)\]|(?<host>[^:]*)):(?<port>\d{1,5})$/.exec(text);
  const port = Number(match?.groups?.['port'] ?? NaN);
  if (match === null || port > 65535) {
    throw new BlksnapError(
      'EINVAL',
      `Cannot read address "${text}": want host:port, as in 127.0.0.1:10809 or [::1]:10809`,
    );
  }
  return { kind: 'tcp', host: match.groups?.['six'] ?? (match.groups?.['host'] || '0.0.0.0'), port };
}

/** Whether only this machine can reach the address. */
export function isLocal(address: SocketAddress): boolean {
  if (address.kind === 'unix') return true;
  return (
    address.host === 'localhost' || address.host === '::1' || (isIPv4(address.host) && address.host.startsWith('127.'))
  );
}

/** Errors: EINVAL for an address that other machines can reach, where neither TLS protects it nor somebody said that
 *  nothing has to. */
export function refuseExposed(
  address: SocketAddress,
  given: { readonly tls: boolean; readonly insecure: boolean },
): void {
  if (isLocal(address) || given.tls || given.insecure) return;
  const where = address.kind === 'tcp' ? `${address.host}:${address.port}` : address.path;
  throw new BlksnapError(
    'EINVAL',
    `Cannot listen on ${where}: other machines can read and write the disks there; ` +
      'give --tls-certificates or --tls-psk (docs/security.md), or --insecure-tcp if the network is yours alone',
  );
}
