/** Listening sockets, connected ones, and socket addresses for the uring driver, by direct system calls. */

import dns from 'node:dns';
import fs from 'node:fs';
import net from 'node:net';
import { BlksnapError, errnoError } from '../../util/errors.ts';
import type { Arena } from '../arena.ts';
import { KEEPALIVE_IDLE_S, completed } from '../reactor.ts';
import type { SocketAddress } from '../reactor.ts';
import { AF_INET, AF_INET6, AF_UNIX, bindSocket, listenSocket, setSocketOption, socket, socketName } from '../sys.ts';
import { OP_CONNECT } from './ring.ts';
import type { StreamHost } from './stream.ts';

const BACKLOG = 1024;
const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SO_SNDBUF = 7;
const SO_KEEPALIVE = 9;
const SO_SNDBUFFORCE = 32;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const TCP_KEEPIDLE = 4;
const TCP_KEEPINTVL = 5;
const TCP_KEEPCNT = 6;
/** Of a unix socket: a reply of 1 MiB fits, the kernel's own account of it included (it doubles what is asked for). */
const SEND_BUFFER_BYTES = 1024 * 1024;
const KEEPALIVE_INTERVAL_S = 10;
const KEEPALIVE_PROBES = 6;
/** sizeof(sockaddr_un.sun_path), with its terminating zero. */
const UNIX_PATH_MAX = 108;

function describe(address: SocketAddress): string {
  if (address.kind === 'unix') return `unix:${address.path}`;
  return address.host.includes(':') ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}

/** Resolves a host name to an IP address. Names need the Node event loop: use addresses on an I/O thread. */
export async function resolveHost(address: SocketAddress): Promise<SocketAddress> {
  if (address.kind === 'unix' || net.isIP(address.host) !== 0) return address;
  if (address.host === 'localhost') return { ...address, host: '127.0.0.1' };
  try {
    return { ...address, host: (await dns.promises.lookup(address.host)).address };
  } catch (cause) {
    throw new BlksnapError('ENOENT', `Cannot find host "${address.host}"`, { cause });
  }
}

function familyOf(address: SocketAddress): number {
  if (address.kind === 'unix') return AF_UNIX;
  return net.isIPv6(address.host) ? AF_INET6 : AF_INET;
}

/** The address as a struct sockaddr (unix(7), ip(7), ipv6(7)). The host must be an IP address. */
function encodeAddress(address: SocketAddress): Uint8Array {
  if (address.kind === 'unix') {
    const path = Buffer.from(address.path);
    if (path.length === 0 || path.length >= UNIX_PATH_MAX) {
      throw new BlksnapError(
        'ENAMETOOLONG',
        `Cannot use socket path "${address.path}": ${path.length} bytes, want 1 to ${UNIX_PATH_MAX - 1}`,
      );
    }
    const bytes = Buffer.alloc(2 + path.length + 1);
    new Uint16Array(bytes.buffer, bytes.byteOffset, 1)[0] = AF_UNIX;
    path.copy(bytes, 2);
    return bytes;
  }
  const v6 = net.isIPv6(address.host);
  const bytes = Buffer.alloc(v6 ? 28 : 16);
  new Uint16Array(bytes.buffer, bytes.byteOffset, 1)[0] = v6 ? AF_INET6 : AF_INET;
  bytes.writeUInt16BE(address.port, 2);
  if (v6) bytes.set(ipv6Bytes(address.host), 8);
  else bytes.set(address.host.split('.').map(Number), 4);
  return bytes;
}

function ipv6Bytes(host: string): Uint8Array {
  const bytes = new Uint8Array(16);
  // The URL parser writes every form of an IPv6 address (also ::ffff:1.2.3.4) as colon-separated groups.
  const canonical = new URL(`http://[${host}]/`).hostname.slice(1, -1);
  const [front = '', back] = canonical.split('::');
  const groups = (text: string): string[] => (text === '' ? [] : text.split(':'));
  const head = groups(front);
  const tail = back === undefined ? [] : groups(back);
  const all = [...head, ...Array<string>(8 - head.length - tail.length).fill('0'), ...tail];
  all.forEach((group, i) => {
    bytes[i * 2] = Number.parseInt(group, 16) >> 8;
    bytes[i * 2 + 1] = Number.parseInt(group, 16) & 0xff;
  });
  return bytes;
}

/** A listening socket and the address it got. A unix socket's file is made with `mode`; a file
 *  that is in the way is an EADDRINUSE error. */
export function openListener(address: SocketAddress, mode: number): { fd: number; address: SocketAddress } {
  const encoded = encodeAddress(address);
  const fd = socket(familyOf(address));
  if (fd < 0) throw errnoError(-fd, 'Cannot make a socket');
  const action = `Cannot listen on ${describe(address)}`;
  let result = address.kind === 'tcp' ? setSocketOption(fd, SOL_SOCKET, SO_REUSEADDR, 1) : 0;
  // Nobody can connect between bind and chmod: the socket does not listen yet.
  if (result >= 0) result = bindSocket(fd, encoded);
  if (result >= 0) {
    if (address.kind === 'unix') fs.chmodSync(address.path, mode);
    result = listenSocket(fd, BACKLOG);
  }
  if (result < 0) {
    fs.closeSync(fd);
    throw errnoError(-result, action);
  }
  return { fd, address: address.kind === 'unix' ? address : { ...address, port: boundPort(fd) } };
}

export function boundPort(fd: number): number {
  const name = socketName(fd);
  if (typeof name === 'number') throw errnoError(-name, 'Cannot read the address of a socket');
  return (name[2]! << 8) | name[3]!;
}

/** A new socket for connecting. */
interface ConnectHost extends Pick<StreamHost, 'start'> {
  readonly arena: Arena;
}

/** A connected socket. The address lies at `at` meanwhile. */
export async function connectSocket(host: ConnectHost, address: SocketAddress, at: number): Promise<number> {
  const resolved = await resolveHost(address);
  const encoded = encodeAddress(resolved);
  const fd = socket(familyOf(resolved));
  if (fd < 0) throw errnoError(-fd, 'Cannot make a socket');
  const { arena } = host;
  arena.bytes.set(encoded, at);
  const result = await completed((c) => host.start(OP_CONNECT, fd, arena.address + at, 0, encoded.length, 0, c));
  if (result < 0) {
    fs.closeSync(fd);
    throw errnoError(-result, `Cannot connect to ${describe(address)}`);
  }
  prepareSocket(fd);
  return fd;
}

/** Over TCP small replies leave at once, and a peer that vanished without a word is noticed. A unix socket takes a large
 *  reply in one go; where we may not go past the system's limit (net.core.wmem_max), as much of it as that allows. */
export function prepareSocket(fd: number): void {
  if (setSocketOption(fd, IPPROTO_TCP, TCP_NODELAY, 1) < 0) {
    if (setSocketOption(fd, SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES) < 0)
      setSocketOption(fd, SOL_SOCKET, SO_SNDBUF, SEND_BUFFER_BYTES);
    return;
  }
  setSocketOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  setSocketOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
  setSocketOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
  setSocketOption(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
}
