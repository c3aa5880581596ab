/** The system calls that Node does not offer, through FFI (koffi).
 *
 *  Loaded on first use, so that a platform without them can still run the portable driver. Calls
 *  are synchronous; each returns what the system call does, or -errno. Blocking ones are for slow
 *  paths. Structures and flags are those of Linux; `ffiAvailable` says whether this is one. */

import os from 'node:os';
import { ERRNO, errnoError } from '../util/errors.ts';
import { ffi } from './ffi.ts';

const MAP_SHARED = 1;
const MAP_PRIVATE = 2;
const MAP_ANONYMOUS = 0x20;
const MAP_POPULATE = 0x8000;
const PROT_NONE = 0;
const PROT_READ = 1;
const PROT_READ_WRITE = 3;
const MS_SYNC = 4;
const MADV_DONTNEED = 4;
const MADV_DONTFORK = 10;
const MADV_HUGEPAGE = 14;

const SYS_IO_URING_SETUP = 425;
const SYS_IO_URING_ENTER = 426;

type Num = number | bigint;

interface Libc {
  mmap(address: Num, length: Num, prot: number, flags: number, fd: number, offset: Num): Num;
  munmap(address: Num, length: Num): number;
  mprotect(address: Num, length: Num, prot: number): number;
  madvise(address: Num, length: Num, advice: number): number;
  msync(address: Num, length: Num, flags: number): number;
  lseek(fd: number, offset: Num, whence: number): Num;
  fallocate(fd: number, mode: number, offset: Num, length: Num): number;
  syncFileRange(fd: number, offset: Num, length: Num, flags: number): number;
  fcntl(fd: number, command: number, argument: Uint8Array): number;
  ioctl(fd: number, request: Num, argument: Uint8Array): number;
  statx(directoryFd: number, path: string, flags: number, mask: number, result: Uint8Array): number;
  eventfd(initial: number, flags: number): number;
  memfd_create(name: string, flags: number): number;
  socket(domain: number, type: number, protocol: number): number;
  bind(fd: number, address: Uint8Array, length: number): number;
  listen(fd: number, backlog: number): number;
  shutdown(fd: number, how: number): number;
  setsockopt(fd: number, level: number, name: number, value: Uint8Array, length: number): number;
  getsockopt(fd: number, level: number, name: number, value: Uint8Array, length: Uint8Array): number;
  socketpair(domain: number, type: number, protocol: number, fds: Uint8Array): number;
  getsockname(fd: number, address: Uint8Array, length: Uint8Array): number;
  pread(fd: number, address: number, length: number, offset: number): Num;
  pwrite(fd: number, address: number, length: number, offset: number): Num;
  preadv(fd: number, iovecs: number, count: number, offset: number): Num;
  /** Null in musl before 1.2.5. */
  readonly preadv2: ((fd: number, iovecs: number, count: number, offset: number, flags: number) => Num) | null;
  pwritev(fd: number, iovecs: number, count: number, offset: number): Num;
  sendmsg(fd: number, header: number, flags: number): Num;
  uringSetup(nr: number, entries: number, params: Uint8Array): Num;
  uringEnter(
    nr: number,
    fd: number,
    submit: number,
    wait: number,
    flags: number,
    argument: number,
    size: number,
  ): number;
}

let loaded: Libc | null = null;

export function ffiAvailable(): boolean {
  return os.platform() === 'linux' && ['LE', 'BE'].includes(os.endianness());
}

function libc(): Libc {
  if (loaded !== null) return loaded;
  const library = ffi().load(null);
  const bind = library.func.bind(library) as (signature: string) => ReturnType<typeof library.func>;
  const bindIfThere = (signature: string): ReturnType<typeof bind> | null => {
    try {
      return bind(signature);
    } catch {
      return null; // Not found: koffi knows no other failure of a signature that it takes elsewhere.
    }
  };
  loaded = {
    mmap: bind('uint64_t mmap(uint64_t, size_t, int, int, int, int64_t)'),
    munmap: bind('int munmap(uint64_t, size_t)'),
    mprotect: bind('int mprotect(uint64_t, size_t, int)'),
    madvise: bind('int madvise(uint64_t, size_t, int)'),
    msync: bind('int msync(uint64_t, size_t, int)'),
    lseek: bind('int64_t lseek(int, int64_t, int)'),
    fallocate: bind('int fallocate(int, int, int64_t, int64_t)'),
    syncFileRange: bind('int sync_file_range(int, int64_t, int64_t, uint32_t)'),
    fcntl: bind('int fcntl(int, int, void*)'),
    ioctl: bind('int ioctl(int, unsigned long, void*)'),
    statx: bind('int statx(int, const char*, int, uint32_t, void*)'),
    eventfd: bind('int eventfd(uint32_t, int)'),
    memfd_create: bind('int memfd_create(const char*, uint32_t)'),
    socket: bind('int socket(int, int, int)'),
    bind: bind('int bind(int, void*, uint32_t)'),
    listen: bind('int listen(int, int)'),
    shutdown: bind('int shutdown(int, int)'),
    setsockopt: bind('int setsockopt(int, int, int, void*, uint32_t)'),
    getsockopt: bind('int getsockopt(int, int, int, void*, void*)'),
    socketpair: bind('int socketpair(int, int, int, void*)'),
    getsockname: bind('int getsockname(int, void*, void*)'),
    pread: bind('int pread(int, uint64_t, size_t, int64_t)'),
    pwrite: bind('int pwrite(int, uint64_t, size_t, int64_t)'),
    preadv: bind('int preadv(int, uint64_t, int, int64_t)'),
    preadv2: bindIfThere('int preadv2(int, uint64_t, int, int64_t, int)'),
    pwritev: bind('int pwritev(int, uint64_t, int, int64_t)'),
    sendmsg: bind('int sendmsg(int, uint64_t, int)'),
    uringSetup: bind('long syscall(long, uint32_t, void*)'),
    uringEnter: bind('int syscall(long, int, uint32_t, uint32_t, uint32_t, uint64_t, size_t)'),
  };
  return loaded;
}

/** The call's result, with -1 turned into -errno. */
function checked(result: Num): number {
  const value = Number(result);
  return value === -1 ? -ffi().errno() : value;
}

/** A mapping: its address, and the memory as an ArrayBuffer. Not to be touched after `unmap`. */
export interface Mapping {
  readonly address: number;
  readonly memory: ArrayBuffer;
}

/** Private zeroed memory that takes space only as it is touched, or -errno. Only its first `usable` bytes may be: the rest
 *  counts nowhere until `enableMemory`, and is best used in huge pages. Child processes have none of it. */
export function mapAnonymous(length: number, usable = length): Mapping | number {
  const { mmap, madvise } = libc();
  const mapping = map(mmap(0, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), length);
  if (typeof mapping === 'number') return mapping;
  const { address } = mapping;
  const status = enableMemory(address, usable);
  if (status < 0) {
    unmap(address, length);
    return status;
  }
  madvise(address, length, MADV_DONTFORK);
  if (length > usable) madvise(address + usable, length - usable, MADV_HUGEPAGE);
  return mapping;
}

/** Makes a part of an anonymous mapping usable: 0 or -errno. */
export function enableMemory(address: number, length: number): number {
  return checked(libc().mprotect(address, length, PROT_READ_WRITE));
}

/** Gives the memory behind a part of an anonymous mapping back; it reads as zeros from then on. 0 or -errno. */
export function discardMemory(address: number, length: number): number {
  return checked(libc().madvise(address, length, MADV_DONTNEED));
}

/** A shared mapping of a file or a ring, or -errno. */
export function mapShared(fd: number, length: number, offset: number, populate = false): Mapping | number {
  const flags = MAP_SHARED | (populate ? MAP_POPULATE : 0);
  return map(libc().mmap(0, length, PROT_READ_WRITE, flags, fd, offset), length);
}

/** As mapShared, only to be read. */
export function mapSharedReadOnly(fd: number, length: number, offset: number): Mapping | number {
  return map(libc().mmap(0, length, PROT_READ, MAP_SHARED, fd, offset), length);
}

function map(result: Num, length: number): Mapping | number {
  if (BigInt(result) === 0xffff_ffff_ffff_ffffn) return -ffi().errno();
  return { address: Number(result), memory: memoryAt(Number(result), length) };
}

/** The memory of this process at an address: the same bytes on every thread. The caller vouches for the mapping. */
function memoryAt(address: number, length: number): ArrayBuffer {
  return ffi().view(BigInt(address), length);
}

export function unmap(address: number, length: number): number {
  return checked(libc().munmap(address, length));
}

/** Writes a shared mapping's changes to its file. */
export function syncMapping(address: number, length: number): number {
  return checked(libc().msync(address, length, MS_SYNC));
}

export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;
/** What seeking data past the last of it fails with. */
export const ENXIO = 6;

/** lseek: the new position, or -errno (-ENXIO past the last data). */
export function seek(fd: number, offset: number, whence: typeof SEEK_DATA | typeof SEEK_HOLE): number {
  return checked(libc().lseek(fd, offset, whence));
}

export function fallocate(fd: number, mode: number, offset: number, length: number): number {
  return checked(libc().fallocate(fd, mode, offset, length));
}

const SYNC_FILE_RANGE_WAIT_BEFORE = 1;
export const SYNC_FILE_RANGE_WRITE = 2;
/** Where no file has pages to wait for. */
const BEHIND_EVERY_FILE = 2 ** 52;

/** Whether the kernel failed to write cached data of the file back since it was opened: 0, or -errno, once for each failure.
 *  Waits for nothing and writes nothing (sync_file_range(2) of a range without pages only asks). */
export function writebackError(fd: number): number {
  return checked(libc().syncFileRange(fd, BEHIND_EVERY_FILE, 1, SYNC_FILE_RANGE_WAIT_BEFORE));
}

/** Has the kernel begin to write cached data of a file back: 0 or -errno. Waits for none of it, but for a place in the
 *  device's queue. What fails of it, the next sync tells. */
export function beginWriteback(fd: number, offset: number, length: number): number {
  return checked(libc().syncFileRange(fd, offset, length, SYNC_FILE_RANGE_WRITE));
}

/** fcntl with a structure argument (locks). */
export function fcntl(fd: number, command: number, argument: Uint8Array): number {
  return checked(libc().fcntl(fd, command, argument));
}

/** ioctl with a memory argument. */
export function ioctl(fd: number, request: number, argument: Uint8Array): number {
  return checked(libc().ioctl(fd, request, argument));
}

const AT_EMPTY_PATH = 0x1000;
const STATX_DIOALIGN = 0x2000;

/** What O_DIRECT on this file asks of memory and of offsets, bytes; 0 when the file cannot do it, null
 *  when the kernel (before 6.1) or the file system does not say. */
export function directAlignment(fd: number): { readonly memory: number; readonly offset: number } | null {
  const result = new DataView(new ArrayBuffer(256)); // struct statx
  const status = checked(libc().statx(fd, '', AT_EMPTY_PATH, STATX_DIOALIGN, new Uint8Array(result.buffer)));
  const littleEndian = os.endianness() === 'LE';
  if (status < 0 || (result.getUint32(0, littleEndian) & STATX_DIOALIGN) === 0) return null;
  return { memory: result.getUint32(152, littleEndian), offset: result.getUint32(156, littleEndian) };
}

const EFD_CLOEXEC = 0x80000;

export function eventfd(): number {
  return checked(libc().eventfd(0, EFD_CLOEXEC));
}

const MFD_CLOEXEC = 1;

/** A file in memory without a name; its descriptor. Errors: ENOMEM, EMFILE. */
export function memoryFile(name: string): number {
  const fd = checked(libc().memfd_create(name, MFD_CLOEXEC));
  if (fd < 0) throw errnoError(-fd, 'Cannot make a file in memory');
  return fd;
}

export const AF_UNIX = 1;
export const AF_INET = 2;
export const AF_INET6 = 10;
const SOCK_STREAM_CLOEXEC = 1 | 0x80000;
const SHUT_RDWR = 2;

export function socket(family: number): number {
  return checked(libc().socket(family, SOCK_STREAM_CLOEXEC, 0));
}

export function bindSocket(fd: number, address: Uint8Array): number {
  return checked(libc().bind(fd, address, address.length));
}

export function listenSocket(fd: number, backlog: number): number {
  return checked(libc().listen(fd, backlog));
}

export function shutdownSocket(fd: number): number {
  return checked(libc().shutdown(fd, SHUT_RDWR));
}

/** Sets an integer socket option. */
export function setSocketOption(fd: number, level: number, name: number, value: number): number {
  const bytes = new Uint8Array(new Int32Array([value]).buffer);
  return checked(libc().setsockopt(fd, level, name, bytes, 4));
}

const SOL_SOCKET = 1;
const SO_PEERCRED = 17;

/** The user id of a unix socket's peer, as of when it connected; -1 for other sockets. */
export function peerUid(fd: number): number {
  const credentials = new Uint8Array(12); // struct ucred: pid, uid, gid
  const length = new Uint8Array(new Uint32Array([credentials.length]).buffer);
  const result = checked(libc().getsockopt(fd, SOL_SOCKET, SO_PEERCRED, credentials, length));
  const [, uid = -1] = new Int32Array(credentials.buffer);
  return result < 0 ? -1 : uid;
}

/** Two connected unix sockets. Errors: EMFILE; EOPNOTSUPP where there is no such call. */
export function socketPair(): readonly [number, number] {
  if (!ffiAvailable()) throw errnoError(ERRNO.EOPNOTSUPP, 'Cannot make a pair of sockets');
  const fds = new Int32Array(2);
  const result = checked(libc().socketpair(AF_UNIX, SOCK_STREAM_CLOEXEC, 0, new Uint8Array(fds.buffer)));
  if (result < 0) throw errnoError(-result, 'Cannot make a pair of sockets');
  return [fds[0]!, fds[1]!];
}

/** The socket's own address as a sockaddr, or -errno. */
export function socketName(fd: number): Uint8Array | number {
  const address = new Uint8Array(128);
  const length = new Uint8Array(new Uint32Array([address.length]).buffer);
  const result = checked(libc().getsockname(fd, address, length));
  return result < 0 ? result : address.subarray(0, new Uint32Array(length.buffer)[0]);
}

/** pread, pwrite, preadv and pwritev at an address, and sendmsg of a struct msghdr: counts, or -errno. Of less than 2 GiB. */
export function readAt(fd: number, address: number, length: number, offset: number): number {
  return checked(libc().pread(fd, address, length, offset));
}

export function writeAt(fd: number, address: number, length: number, offset: number): number {
  return checked(libc().pwrite(fd, address, length, offset));
}

export function readVectorAt(fd: number, iovecs: number, count: number, offset: number): number {
  return checked(libc().preadv(fd, iovecs, count, offset));
}

const RWF_NOWAIT = 8;

/** As readVectorAt, but only what needs no waiting (what the page cache holds): a count, short where the rest would have to
 *  be waited for; -EAGAIN when there is nothing (some kernels say 0); -EOPNOTSUPP where the file system cannot tell. */
export function readVectorNow(fd: number, iovecs: number, count: number, offset: number): number {
  const { preadv2 } = libc();
  return preadv2 === null ? -ERRNO.EOPNOTSUPP : checked(preadv2(fd, iovecs, count, offset, RWF_NOWAIT));
}

export function writeVectorAt(fd: number, iovecs: number, count: number, offset: number): number {
  return checked(libc().pwritev(fd, iovecs, count, offset));
}

export function sendMessage(fd: number, header: number, flags: number): number {
  return checked(libc().sendmsg(fd, header, flags));
}

/** io_uring_setup: the ring's descriptor, or -errno. `params` is a struct io_uring_params. */
export function uringSetup(entries: number, params: Uint8Array): number {
  return checked(libc().uringSetup(SYS_IO_URING_SETUP, entries, params));
}

/** The bound io_uring_enter: returned as a function so that the hot path calls it directly.
 *  Gives the number submitted, or -errno. */
export function uringEnter(): (
  fd: number,
  submit: number,
  wait: number,
  flags: number,
  argument: number,
  argumentSize: number,
) => number {
  const enter = libc().uringEnter;
  return (fd, submit, wait, flags, argument, argumentSize) => {
    const result = enter(SYS_IO_URING_ENTER, fd, submit, wait, flags, argument, argumentSize);
    return result === -1 ? -ffi().errno() : result;
  };
}
