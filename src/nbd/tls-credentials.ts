/** What TLS needs of the file system, under the names that QEMU and libnbd give it: a directory of certificates
 *  (`ca-cert.pem`, `server-cert.pem`, `server-key.pem`, `client-cert.pem`, `client-key.pem`, and `ca-crl.pem` if there is
 *  one), or a file of pre-shared keys with lines `NAME:HEX` as psktool writes them.
 *
 *  Everything is read and checked once, at the start, so that a mistake shows there and not at the first client. */

import fs from 'node:fs';
import path from 'node:path';
import tls from 'node:tls';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { readSecret } from '../util/secret-file.ts';
import { isClientName, provenName } from './peer.ts';

/** As the user gives it: one of the two. */
export interface TlsFiles {
  readonly certificates?: string | undefined;
  readonly psk?: string | undefined;
}

export interface ServerFiles extends TlsFiles {
  /** Only clients with a certificate of the same authority. */
  readonly verifyPeer?: boolean | undefined;
}

export type PskKeys = ReadonlyMap<string, Buffer>;

export type ServerCredentials =
  | { readonly kind: 'x509'; readonly options: tls.TlsOptions; readonly verifyPeer: boolean }
  | { readonly kind: 'psk'; readonly keys: PskKeys };

export type ClientCredentials =
  | { readonly kind: 'x509'; readonly options: tls.SecureContextOptions }
  | { readonly kind: 'psk'; readonly name: string; readonly key: Buffer };

export const MIN_TLS_VERSION = 'TLSv1.2';
/** Cipher suites for pre-shared keys, of the kind that a key found out later does not help against; first those of
 *  TLS 1.3. The others of TLS 1.2 would let a server without a certificate be asked for one. */
export const PSK_CIPHERS =
  'TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:ECDHE-PSK-CHACHA20-POLY1305:DHE-PSK-AES256-GCM-SHA384:DHE-PSK-AES128-GCM-SHA256';
const MIN_KEY_BYTES = 16;
const MAX_KEY_BYTES = 256;

/** Null when TLS was not asked for. Errors: EINVAL for both kinds at once or none to verify with; what reading fails with. */
export function loadServerCredentials({
  certificates,
  psk,
  verifyPeer = false,
}: ServerFiles): ServerCredentials | null {
  refuseBoth({ certificates, psk });
  if (verifyPeer && certificates === undefined) {
    throw new BlksnapError('EINVAL', 'Cannot verify clients: --tls-verify-peer needs --tls-certificates DIR');
  }
  if (psk !== undefined) return { kind: 'psk', keys: readKeys(psk) };
  if (certificates === undefined) return null;
  const own = { cert: readPublic(certificates, 'server-cert.pem'), key: readKey(certificates, 'server-key.pem') };
  const authority = verifyPeer ? readAuthority(certificates) : {};
  const options = { ...own, ...authority, minVersion: MIN_TLS_VERSION } as const;
  checkUsable(certificates, options);
  return { kind: 'x509', options, verifyPeer };
}

/** Null when TLS was not asked for. `pskName`: which line of a file of keys; not needed where it has but one. A
 *  directory without `client-cert.pem` is for servers that do not ask. Errors: as above. */
export function loadClientCredentials(files: TlsFiles, pskName?: string): ClientCredentials | null {
  refuseBoth(files);
  const { certificates, psk } = files;
  if (psk !== undefined) return { kind: 'psk', ...chosenKey(psk, pskName) };
  if (certificates === undefined) return null;
  const own = fs.existsSync(path.join(certificates, 'client-cert.pem'))
    ? { cert: readPublic(certificates, 'client-cert.pem'), key: readKey(certificates, 'client-key.pem') }
    : {};
  const options = { ...readAuthority(certificates), ...own, minVersion: MIN_TLS_VERSION } as const;
  checkUsable(certificates, options);
  return { kind: 'x509', options };
}

function refuseBoth({ certificates, psk }: TlsFiles): void {
  if (certificates === undefined || psk === undefined) return;
  throw new BlksnapError('EINVAL', 'Cannot use certificates and pre-shared keys at once: give one of them');
}

function readPublic(directory: string, name: string): string {
  try {
    return fs.readFileSync(path.join(directory, name), 'utf8');
  } catch (cause) {
    throw toBlksnapError(cause, `Cannot read the TLS certificates in "${directory}"`);
  }
}

function readKey(directory: string, name: string): string {
  return readSecret(path.join(directory, name), 'TLS key');
}

function readAuthority(directory: string): { ca: string; crl?: string } {
  const ca = readPublic(directory, 'ca-cert.pem');
  const hasList = fs.existsSync(path.join(directory, 'ca-crl.pem'));
  return hasList ? { ca, crl: readPublic(directory, 'ca-crl.pem') } : { ca };
}

/** OpenSSL's own words name no content of the files. */
function checkUsable(directory: string, options: tls.SecureContextOptions): void {
  try {
    tls.createSecureContext(options);
  } catch (cause) {
    throw new BlksnapError('EINVAL', `Cannot use the TLS certificates in "${directory}": ${(cause as Error).message}`);
  }
}

function readKeys(file: string): PskKeys {
  const keys = new Map<string, Buffer>();
  const lines = readSecret(file, 'file of pre-shared keys').split('\n');
  for (const [index, line] of lines.entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue;
    const colon = line.lastIndexOf(':');
    const name = provenName(line.slice(0, Math.max(colon, 0)));
    const hex = line.slice(colon + 1).trim();
    const bytes = hex.length / 2;
    if (name === null || !/^[0-9a-f]*$/i.test(hex) || !Number.isInteger(bytes)) {
      throw unusableLine(file, index, 'want NAME:HEX, as psktool writes it');
    }
    if (bytes < MIN_KEY_BYTES || bytes > MAX_KEY_BYTES) {
      throw unusableLine(file, index, `a key of ${bytes} bytes, want ${MIN_KEY_BYTES} to ${MAX_KEY_BYTES}`);
    }
    if (keys.has(name)) throw unusableLine(file, index, `a second key of "${name}"`);
    keys.set(name, Buffer.from(hex, 'hex'));
  }
  if (keys.size === 0) throw new BlksnapError('EINVAL', `Cannot use the keys in "${file}": there is none`);
  return keys;
}

/** Says where, never what. */
function unusableLine(file: string, index: number, why: string): BlksnapError {
  return new BlksnapError('EINVAL', `Cannot use line ${index + 1} of the pre-shared keys in "${file}": ${why}`);
}

function chosenKey(file: string, name: string | undefined): { name: string; key: Buffer } {
  const keys = readKeys(file);
  const wanted = name ?? (keys.size === 1 ? [...keys.keys()][0]! : undefined);
  if (wanted === undefined) {
    throw new BlksnapError(
      'EINVAL',
      `Cannot choose a key of "${file}": it has ${keys.size}; name one, as in nbds://NAME@HOST/`,
    );
  }
  const key = keys.get(wanted);
  if (key !== undefined) return { name: wanted, key };
  const shown = isClientName(wanted) ? ` "${wanted}"` : '';
  throw new BlksnapError('ENOENT', `Cannot find the key${shown} in "${file}"`);
}
