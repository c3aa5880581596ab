/** Opens an image file as a block device: buffered, or past the page cache with O_DIRECT. */

import fs from 'node:fs';
import { dirname } from 'node:path';
import { onTmpfs, openUnnamed } from '../io/files.ts';
import { ALLOCATE_PUNCH_HOLE } from '../io/reactor.ts';
import type { Reactor } from '../io/reactor.ts';
import { directAlignment, fallocate, ffiAvailable } from '../io/sys.ts';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { alignUp } from '../util/units.ts';
import { DescriptorDevice } from './descriptor-device.ts';
import { lockImage } from './locks.ts';

const SECTOR = 512;
const PAGE = 4096;

export interface OpenDeviceOptions {
  readonly reactor: Reactor;
  readonly readOnly?: boolean;
  /** Past the page cache (O_DIRECT): what has ended a write has reached the device, if not its platter. */
  readonly direct?: boolean;
}

/** Errors: ENOENT, EISDIR, EACCES, EROFS; EBUSY when another program uses the image; EINVAL for a size
 *  that is no whole number of blocks. */
export function openFileDevice(path: string, options: OpenDeviceOptions): DescriptorDevice {
  const readOnly = options.readOnly ?? false;
  const fd = openImage(path, readOnly, options.direct ?? false);
  try {
    lockImage(fd, path, { write: !readOnly });
    return fileDevice(fd, path, options);
  } catch (cause) {
    fs.closeSync(fd);
    throw cause;
  }
}

function openImage(path: string, readOnly: boolean, direct: boolean): number {
  const { O_RDONLY, O_RDWR, O_DIRECT } = fs.constants;
  try {
    return fs.openSync(path, (readOnly ? O_RDONLY : O_RDWR) | (direct ? O_DIRECT : 0));
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (direct && code === 'EINVAL') {
      throw new BlksnapError('EINVAL', `Cannot open "${path}": its file system has no direct I/O; open it without`, {
        cause,
      });
    }
    const advice = !readOnly && (code === 'EACCES' || code === 'EROFS') ? ' for writing (read-only may do)' : '';
    throw toBlksnapError(cause, `Cannot open "${path}"${advice}`);
  }
}

/** A device on an image that is open already; the descriptor is the device's from then on. */
export function fileDevice(fd: number, image: string, options: OpenDeviceOptions): DescriptorDevice {
  const { size } = fs.fstatSync(fd);
  const readOnly = options.readOnly ?? false;
  const alignment = options.direct === true ? fileAlignment(fd, image, size) : { memory: 1, offset: SECTOR };
  if (size === 0 || size % alignment.offset !== 0) {
    const wrong = size === 0 ? 'it is empty' : `size ${size} is not a multiple of ${alignment.offset}`;
    throw new BlksnapError('EINVAL', `Cannot open "${image}" as a disk: ${wrong}; make it larger with truncate`);
  }
  const punch = !readOnly && canPunch(image, fd);
  return new DescriptorDevice(options.reactor, {
    name: image,
    fd,
    sizeNow: () => fs.fstatSync(fd).size,
    logicalBlockSize: alignment.offset,
    physicalBlockSize: Math.max(PAGE, alignment.offset),
    readOnly,
    memoryAlignment: alignment.memory,
    kind: 'file',
    cached: options.direct === true ? 'nothing' : ffiAvailable() && onTmpfs(`/proc/self/fd/${fd}`) ? 'all' : 'writes',
    capabilities: {
      flush: true,
      fua: true,
      discard: punch,
      writeZeroes: !readOnly,
      fastZero: punch,
      rotational: false,
    },
  });
}

/** What O_DIRECT asks of this file. Where the kernel does not say: a page, which is enough everywhere;
 *  a sector for sizes that are no whole pages, which most devices take. */
function fileAlignment(fd: number, path: string, size: number): { memory: number; offset: number } {
  const asked = ffiAvailable() ? directAlignment(fd) : null;
  if (asked === null) return { memory: PAGE, offset: size % PAGE === 0 ? PAGE : SECTOR };
  if (asked.offset === 0) {
    throw new BlksnapError('EINVAL', `Cannot open "${path}": direct I/O does not work on this file; open it without`);
  }
  return { memory: asked.memory, offset: Math.max(SECTOR, asked.offset) };
}

/** Tries it on a file of its own, unnamed and beside the image. Trying it on the image would change its times, by
 *  which change tracking tells whether somebody else wrote to it; only one without a name has nobody who looks.
 *  Where no file can be made beside it: no. */
function canPunch(image: string, fd: number): boolean {
  if (!ffiAvailable()) return false;
  const { nlink, size, dev } = fs.fstatSync(fd);
  if (nlink === 0) return fallocate(fd, ALLOCATE_PUNCH_HOLE, alignUp(size, PAGE), PAGE) === 0;
  let probe: number;
  try {
    probe = openUnnamed(dirname(fs.realpathSync(image)));
  } catch {
    return false;
  }
  try {
    // A file that is mounted by itself is on another file system than its directory.
    return fs.fstatSync(probe).dev === dev && fallocate(probe, ALLOCATE_PUNCH_HOLE, 0, PAGE) === 0;
  } finally {
    fs.closeSync(probe);
  }
}
