/** Where and how the API is offered over TCP: what `--api-tcp` asks for, checked before anything starts. */

import type { SocketAddress } from '../io/reactor.ts';
import { isLocal, parseHostPort } from '../nbd/address.ts';
import type { ServerCredentials } from '../nbd/tls-credentials.ts';
import { BlksnapError } from '../util/errors.ts';
import { openToken } from './token.ts';

export interface TcpApi {
  readonly host: string;
  readonly port: number;
  readonly token: string;
  /** Null: without TLS. */
  readonly certificate: { readonly cert: string; readonly key: string } | null;
}

export interface TcpApiRequest {
  /** `host:port`; undefined: not over TCP. */
  readonly address: string | undefined;
  /** Made with a random token where it is missing. */
  readonly tokenFile: string | undefined;
}

/** Null when it was not asked for. Errors: EINVAL without a token, and for an address that other machines can reach
 *  without certificates; as `openToken`. */
export function openTcpApi(
  { address, tokenFile }: TcpApiRequest,
  { credentials, insecureTcp }: { readonly credentials: ServerCredentials | null; readonly insecureTcp: boolean },
): TcpApi | null {
  if (address === undefined) {
    if (tokenFile === undefined) return null;
    throw new BlksnapError('EINVAL', 'Cannot use a token: the unix socket needs none; give --api-tcp host:port');
  }
  const where = parseHostPort(address) as SocketAddress & { readonly kind: 'tcp' };
  if (tokenFile === undefined) {
    throw new BlksnapError('EINVAL', `Cannot offer the API on ${address} without a token; give --api-token FILE`);
  }
  const secure = credentials?.kind === 'x509' ? credentials.options : null;
  if (secure === null && !isLocal(where) && !insecureTcp) {
    throw new BlksnapError(
      'EINVAL',
      `Cannot offer the API on ${address}: other machines would send the token in plain; give --tls-certificates ` +
        '(docs/security.md), or --insecure-tcp if the network is yours alone',
    );
  }
  const certificate = secure === null ? null : { cert: secure.cert as string, key: secure.key as string };
  return { host: where.host, port: where.port, token: openToken(tokenFile), certificate };
}
