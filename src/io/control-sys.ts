/** System calls off the data path, through FFI: netlink, and what a process in the write path of its own
 *  machine needs. Synchronous; loaded on first use. Each returns what the system call does, or -errno. */

import { ffi } from './ffi.ts';

interface Libc {
  socket(domain: number, type: number, protocol: number): number;
  setsockopt(fd: number, level: number, name: number, value: Uint8Array, length: number): number;
  send(fd: number, bytes: Uint8Array, length: number, flags: number): number | bigint;
  recv(fd: number, bytes: Uint8Array, length: number, flags: number): number | bigint;
  mlock(address: bigint, length: number): number;
  prctl(option: number, argument: number, a: number, b: number, c: number): number;
  sched_setscheduler(thread: number, policy: number, parameters: Uint8Array): number;
}

let loaded: Libc | null = null;

function libc(): Libc {
  if (loaded !== null) return loaded;
  const library = ffi().load(null);
  const bind = library.func.bind(library) as (signature: string) => ReturnType<typeof library.func>;
  loaded = {
    socket: bind('int socket(int, int, int)'),
    setsockopt: bind('int setsockopt(int, int, int, void*, uint32_t)'),
    send: bind('int64_t send(int, void*, size_t, int)'),
    recv: bind('int64_t recv(int, void*, size_t, int)'),
    mlock: bind('int mlock(uint64_t, size_t)'),
    sched_setscheduler: bind('int sched_setscheduler(int, int, void*)'),
    prctl: bind('int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long)'),
  };
  return loaded;
}

function checked(result: number | bigint): number {
  const value = Number(result);
  return value === -1 ? -ffi().errno() : value;
}

const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0x80000;
const SOL_SOCKET = 1;
const SO_RCVTIMEO = 20;

/** A netlink socket to the kernel whose receive gives up after a time, or -errno. */
export function netlinkSocket(protocol: number, timeoutSeconds: number): number {
  const fd = checked(libc().socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));
  if (fd < 0) return fd;
  const timeout = new Uint8Array(new BigInt64Array([BigInt(timeoutSeconds), 0n]).buffer); // struct timeval
  libc().setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, timeout, timeout.length);
  return fd;
}

export function sendBytes(fd: number, bytes: Uint8Array): number {
  return checked(libc().send(fd, bytes, bytes.length, 0));
}

/** Bytes received, or -errno; -EAGAIN when the time was over. */
export function receiveBytes(fd: number, into: Uint8Array): number {
  return checked(libc().recv(fd, into, into.length, 0));
}

/** Keeps what is mapped there in memory. 0, or -errno. */
export function lockMapping(address: bigint, length: number): number {
  return checked(libc().mlock(address, length));
}

const PR_SET_IO_FLUSHER = 57;

/** Tells the kernel that this thread, and those that it starts, are in the way of writes: an allocation of theirs must
 *  not wait for what they themselves would have to write. 0, or -errno. */
export function becomeIoFlusher(): number {
  return checked(libc().prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0));
}

const SCHED_IDLE = 5;

/** This thread (its number, or 0 for the caller), and those that it starts, run when no other wants the processor: whoever
 *  wakes up has it at once, also in the middle of a time slice. 0, or -errno. */
export function runWhenIdle(thread: number): number {
  return checked(libc().sched_setscheduler(thread, SCHED_IDLE, new Uint8Array(4))); // struct sched_param: priority 0
}
