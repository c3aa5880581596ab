/** Listening, connecting and adopting for the portable driver. */

import fs from 'node:fs';
import net from 'node:net';
import type { Readable, Writable } from 'node:stream';
import { BlksnapError, toBlksnapError } from '../../util/errors.ts';
import { KEEPALIVE_IDLE_S } from '../reactor.ts';
import type { Listener, SocketAddress, Stream } from '../reactor.ts';
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
  const server = net.createServer(SOCKET_OPTIONS, (socket) => {
    host.turned();
    onStream(new PortableStream(host, socket, socket));
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

export function connectStream(host: StreamHost, address: SocketAddress): Promise<PortableStream> {
  return new Promise((resolve, reject) => {
    const socket = net.connect({ ...SOCKET_OPTIONS, ...endpoint(address) });
    const failed = (cause: Error): void => reject(toBlksnapError(cause, `Cannot connect to ${describe(address)}`));
    socket.once('error', failed);
    socket.once('connect', () => {
      socket.off('error', failed);
      resolve(new PortableStream(host, socket, socket));
    });
  });
}

export function adoptStream(host: StreamHost, readFd: number, writeFd: number): Stream {
  if (readFd === writeFd) {
    const socket = new net.Socket({ ...SOCKET_OPTIONS, fd: readFd, readable: true, writable: true });
    return new PortableStream(host, socket, socket);
  }
  return new PortableStream(host, readableOf(readFd), writableOf(writeFd));
}

function isPolled(fd: number): boolean {
  const stat = fs.fstatSync(fd);
  return stat.isSocket() || stat.isFIFO();
}

function readableOf(fd: number): Readable {
  if (isPolled(fd)) return new net.Socket({ ...SOCKET_OPTIONS, fd, readable: true, writable: false });
  return fs.createReadStream('', { fd, highWaterMark: STREAM_BUFFER });
}

function writableOf(fd: number): Writable {
  if (isPolled(fd)) return new net.Socket({ ...SOCKET_OPTIONS, fd, readable: false, writable: true });
  return fs.createWriteStream('', { fd });
}
