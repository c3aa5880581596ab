/** Between a TLS connection and one that everything else understands: what TLS has unwrapped goes through one end of a
 *  socket pair, and back. Both ends hold each other back; what was said last still arrives. */

import net from 'node:net';
import type { TLSSocket } from 'node:tls';
import { socketPair } from '../io/sys.ts';

/** How long a peer may take to receive its last bytes. */
const LINGER_MS = 2_000;

/** Starts pumping; returns the descriptor of the plain end, which is the caller's. Ends with either side.
 *  Errors: EMFILE and the like; the TLS connection is then still open. */
export function pumpTls(secure: TLSSocket): number {
  const [inner, outer] = socketPair();
  const plain = new net.Socket({ fd: inner, readable: true, writable: true, allowHalfOpen: true });
  // A break ends both; who reads the plain end hears of it as an end of the stream.
  plain.on('error', () => {}).once('close', () => endSoon(secure));
  secure.on('error', () => {}).once('close', () => endSoon(plain));
  secure.pipe(plain);
  plain.pipe(secure);
  return outer;
}

function endSoon(socket: net.Socket): void {
  if (socket.destroyed) return;
  const impatience = setTimeout(() => socket.destroy(), LINGER_MS);
  socket.once('close', () => clearTimeout(impatience));
  socket.destroySoon();
}
