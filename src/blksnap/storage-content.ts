/** Tells a file that was preallocated, or is full of zeros, from one with content that must not be lost. */

import fs from 'node:fs';
import { promisify } from 'node:util';
import { borrow } from '../io/files.ts';
import { completed } from '../io/reactor.ts';
import type { Reactor } from '../io/reactor.ts';
import { ENXIO, SEEK_DATA, SEEK_HOLE, ffiAvailable, seek } from '../io/sys.ts';
import { BlksnapError, errnoError } from '../util/errors.ts';
import { KIB, MIB, formatSize } from '../util/units.ts';
import { isZero } from '../util/zeroes.ts';

/** Where the file system does not tell reserved space from data (tmpfs), or zeros were written: how much is read. */
const MAX_READ = 256 * MIB;
const STEP = 256 * KIB;

/** Reads up to STEP bytes, which may be looked at until the next read. */
type Read = (at: number, length: number) => Promise<Uint8Array>;

/** Errors: EEXIST for a file with anything but zeros in it, or too much to be read; ENOMEM. */
export async function refuseContent(reactor: Reactor, fd: number, action: string): Promise<void> {
  const { arena } = reactor;
  const place = await borrow(arena, STEP);
  try {
    await lookThrough(fd, action, async (at, length) => {
      const result = await completed((c) => reactor.read(fd, place, length, at, c));
      if (result < 0) throw errnoError(-result, `${action}: it cannot be read at ${at}`);
      return arena.bytes.subarray(place, place + result);
    });
  } finally {
    arena.release(place);
  }
}

/** The same where there is no reactor: its loop would not hear of reads that end elsewhere. */
export async function refuseContentHere(fd: number, action: string): Promise<void> {
  const read = promisify(fs.read);
  const buffer = Buffer.alloc(STEP);
  await lookThrough(fd, action, async (at, length) =>
    buffer.subarray(0, (await read(fd, buffer, 0, length, at)).bytesRead),
  );
}

async function lookThrough(fd: number, action: string, read: Read): Promise<void> {
  const { size } = fs.fstatSync(fd);
  let looked = 0;
  for (let at = dataFrom(fd, 0, size); at < size;) {
    const end = dataUntil(fd, at, size);
    while (at < end) {
      if (looked >= MAX_READ) throw refused(action, `more than ${formatSize(MAX_READ)} of it would have to be read`);
      const bytes = await read(at, Math.min(STEP, end - at));
      if (bytes.length === 0) return;
      if (!isZero(bytes)) throw refused(action, 'it has content');
      at += bytes.length;
      looked += bytes.length;
    }
    at = dataFrom(fd, end, size);
  }
}

export function refused(action: string, why: string): BlksnapError {
  return new BlksnapError('EEXIST', `${action}: ${why}; name a new file, an empty or unused one, or a directory`);
}

function dataFrom(fd: number, offset: number, size: number): number {
  const found = ffiAvailable() ? seek(fd, offset, SEEK_DATA) : offset;
  if (found === -ENXIO) return size;
  return found < 0 ? offset : found;
}

function dataUntil(fd: number, offset: number, size: number): number {
  const found = ffiAvailable() ? seek(fd, offset, SEEK_HOLE) : size;
  return found > offset ? Math.min(found, size) : size;
}
