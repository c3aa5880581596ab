/** Listening, connecting and adopting for the portable driver. */

import fs from 'node:fs';
import net from 'node:net';
import type { Readable, Writable } from 'node:stream';
import { BlksnapError, toBlksnapError } from '../../util/errors.ts';
import { KEEPALIVE_IDLE_S } from '../reactor.ts';
import type { Listener, SocketAddress, Stream } from '../reactor.ts';
import { Inlet } from './inlet.ts';
import { PortableStream, STREAM_BUFFER } from './stream.ts';
import type { StreamHost } from './stream.ts';

/** sizeof(sockaddr_un.sun_path) on Linux, less its terminating zero. Node cuts longer paths in silence. */
const UNIX_PATH_LIMIT = 107;

/** What listeners need of their reactor. */
export interface SocketHost extends StreamHost {
  turned(): void;
}

/** A socket whose two directions end on their own, and whose small writes leave at once; a peer that vanished is noticed. */
const SOCKET_OPTIONS = {
  allowHalfOpen: true,
  highWaterMark: STREAM_BUFFER,
  noDelay: true,
  keepAlive: true,
  keepAliveInitialDelay: KEEPALIVE_IDLE_S * 1000,
};

function describe(address: SocketAddress): string {
  if (address.kind === 'unix') return `unix:${address.path}`;
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}

function endpoint(address: SocketAddress): { path: string } | { host: string; port: number } {
  if (address.kind === 'tcp') return { host: address.host, port: address.port };
  const bytes = Buffer.byteLength(address.path);
  if (bytes === 0 || bytes > UNIX_PATH_LIMIT) {
    throw new BlksnapError(
      'ENAMETOOLONG',
      `Cannot use socket path "${address.path}": ${bytes} bytes, want 1 to ${UNIX_PATH_LIMIT}`,
    );
  }
  return { path: address.path };
}

/** Listens on an address, or on a listening socket that is there already. */
export async function listenOn(
  host: SocketHost,
  where: SocketAddress | number,
  mode: number,
  onStream: (stream: Stream) => void,
): Promise<Listener> {
  // Paused: whoever reads is made below.
  const server = net.createServer({ ...SOCKET_OPTIONS, pauseOnConnect: true }, (accepted) => {
    host.turned();
    onStream(socketStream(host, { handle: takeHandle(accepted) }));
  });
  const name = typeof where === 'number' ? `descriptor ${where}` : describe(where);
  const target = typeof where === 'number' ? { fd: where } : endpoint(where);
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) => reject(toBlksnapError(cause, `Cannot listen on ${name}`)));
    server.listen(target, resolve);
    // In the same turn as the bind: until then, the file has the mode that the umask leaves.
    if ('path' in target && server.listening) fs.chmodSync(target.path, mode);
  });
  host.socketOpened();
  let open = true;
  return {
    address: boundAddress(server, where),
    close: () => {
      if (!open) return;
      open = false;
      server.close();
      host.socketClosed();
    },
  };
}

function boundAddress(server: net.Server, where: SocketAddress | number): SocketAddress {
  const bound = server.address();
  if (bound !== null && typeof bound === 'object') {
    return {
      kind: 'tcp',
      host: typeof where === 'object' && where.kind === 'tcp' ? where.host : bound.address,
      port: bound.port,
    };
  }
  return { kind: 'unix', path: bound ?? '' };
}

/** A server makes its sockets without `onread`. What is behind them, Node's own and undocumented, can be given to another. */
function takeHandle(socket: net.Socket): unknown {
  const owner = socket as unknown as { _handle: unknown };
  const handle = owner._handle;
  owner._handle = null;
  return handle;
}

/** `handle`, and `onread` in a constructor, are unknown to the types. */
type SocketOptions = net.SocketConstructorOpts & { readonly onread: Inlet['onread']; readonly handle?: unknown };

function socketStream(host: StreamHost, of: { readonly handle: unknown } | { readonly fd: number }): PortableStream {
  const inlet = new Inlet(host);
  const options: SocketOptions = { ...SOCKET_OPTIONS, ...of, onread: inlet.onread, readable: true, writable: true };
  const socket = new net.Socket(options);
  return new PortableStream(host, inlet, socket, socket);
}

export function connectStream(host: StreamHost, address: SocketAddress): Promise<PortableStream> {
  return new Promise((resolve, reject) => {
    const inlet = new Inlet(host);
    const socket = net.connect({ ...SOCKET_OPTIONS, ...endpoint(address), onread: inlet.onread });
    const failed = (cause: Error): void => reject(toBlksnapError(cause, `Cannot connect to ${describe(address)}`));
    socket.once('error', failed);
    socket.once('connect', () => {
      socket.off('error', failed);
      resolve(new PortableStream(host, inlet, socket, socket));
    });
  });
}

export function adoptStream(host: StreamHost, readFd: number, writeFd: number): Stream {
  if (readFd === writeFd) return socketStream(host, { fd: readFd });
  const inlet = new Inlet(host);
  return new PortableStream(host, inlet, readableOf(readFd, inlet), writableOf(writeFd));
}

function isPolled(fd: number): boolean {
  const stat = fs.fstatSync(fd);
  return stat.isSocket() || stat.isFIFO();
}

function readableOf(fd: number, inlet: Inlet): Readable {
  if (!isPolled(fd)) return fs.createReadStream('', { fd, highWaterMark: STREAM_BUFFER });
  const options: SocketOptions = { ...SOCKET_OPTIONS, fd, onread: inlet.onread, readable: true, writable: false };
  return new net.Socket(options);
}

function writableOf(fd: number): Writable {
  if (isPolled(fd)) return new net.Socket({ ...SOCKET_OPTIONS, fd, readable: false, writable: true });
  return fs.createWriteStream('', { fd });
}
