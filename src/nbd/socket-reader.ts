/** Reads exact counts of bytes from one of Node's sockets, and leaves the socket paused, with nothing read ahead that is
 *  not accounted for. Slow path: for the few messages before TLS. */

import type net from 'node:net';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';

export class SocketReader {
  readonly #socket: net.Socket;
  #wake: () => void = () => {};
  #failure: BlksnapError | null = null;

  constructor(socket: net.Socket) {
    this.#socket = socket;
    socket.on('readable', this.#onReadable).on('end', this.#onEnd).on('close', this.#onEnd).on('error', this.#onError);
  }

  readonly #onReadable = (): void => this.#wake();

  readonly #onEnd = (): void =>
    this.#fail(new BlksnapError('ECONNRESET', 'The peer closed the connection before TLS had begun'));

  readonly #onError = (cause: Error): void => this.#fail(toBlksnapError(cause, 'The connection broke before TLS'));

  #fail(failure: BlksnapError): void {
    this.#failure ??= failure;
    this.#wake();
  }

  /** Errors: ECONNRESET and the like when the socket ends first. */
  async read(length: number): Promise<Buffer> {
    if (length === 0) return Buffer.alloc(0);
    for (;;) {
      const bytes = this.#socket.read(length) as Buffer | null;
      // At its end a socket gives what is left, however little.
      if (bytes !== null && bytes.length === length) return bytes;
      if (this.#failure !== null || this.#socket.destroyed) {
        throw this.#failure ?? new BlksnapError('ECONNRESET', 'The connection was closed before TLS had begun');
      }
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  /** Errors: EPROTO when there is more than was read. */
  checkEmpty(otherwise: string): void {
    const { readableLength } = this.#socket;
    if (readableLength > 0) throw new BlksnapError('EPROTO', `${otherwise}: ${readableLength} bytes`);
  }

  /** Lets go of the socket. */
  release(): void {
    const socket = this.#socket;
    socket.off('readable', this.#onReadable).off('end', this.#onEnd).off('close', this.#onEnd);
    socket.off('error', this.#onError);
  }
}
