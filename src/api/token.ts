/** The secret that opens the API over TCP. It lives in a file of mode 0600, on both sides; it is never an argument, never
 *  in the environment, and no message or log holds it. */

import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import fs from 'node:fs';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { readSecret } from '../util/secret-file.ts';

const TOKEN_BYTES = 32;
/** Too long to be guessed over a network, if it is random at all. */
const MIN_LENGTH = 32;

/** Makes the file where there is none. Errors: as `readToken`. */
export function openToken(file: string): string {
  try {
    fs.writeFileSync(file, `${randomBytes(TOKEN_BYTES).toString('base64url')}\n`, { mode: 0o600, flag: 'wx' });
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw toBlksnapError(cause, 'Cannot make the API token');
  }
  return readToken(file);
}

/** Errors: EACCES when others can read the file; EINVAL for what is no token; those of open. */
export function readToken(file: string): string {
  const token = readSecret(file, 'API token').trim();
  if (token.length >= MIN_LENGTH && /^[\x21-\x7e]+$/.test(token)) return token;
  throw new BlksnapError(
    'EINVAL',
    `Cannot use API token "${file}": want ${MIN_LENGTH} characters or more on one line, without spaces`,
  );
}

/** Whether the header brings the token. Takes as long for one wrong token as for any other. */
export function bringsToken(authorization: string | null, token: string): boolean {
  const given = /^Bearer (.+)$/i.exec(authorization ?? '')?.[1] ?? '';
  return timingSafeEqual(digest(given), digest(token));
}

function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}
