/** The label of a piece of storage that outlives the process: what its first chunk says, so that nobody takes another
 *  file or device for it, and nothing else is ever removed as one.
 *
 *     0 magic "BLKSNDIF"   8 version u32 (little-endian)   12 number of the piece u32   16 snapshot id, 36 characters */

import { NO_MEMORY } from '../io/arena.ts';
import { readWhole, writeWhole } from '../io/files.ts';
import type { OpenFile } from '../io/files.ts';
import type { Reactor } from '../io/reactor.ts';
import { BlksnapError } from '../util/errors.ts';
import { CHUNK } from './chunk-table.ts';

export const LABEL_CHUNKS = 1;
const MAGIC = 'BLKSNDIF';
const VERSION = 1;
const LABEL_BYTES = 52;

export interface Label {
  readonly id: string;
  readonly piece: number;
}

function encode({ id, piece }: Label): Buffer {
  const bytes = Buffer.alloc(CHUNK);
  bytes.write(MAGIC, 0, 'latin1');
  bytes.writeUInt32LE(VERSION, 8);
  bytes.writeUInt32LE(piece, 12);
  bytes.write(id, 16, 'latin1');
  return bytes;
}

/** Errors: ENOMEM, what the file fails with. */
export async function writeLabel(reactor: Reactor, file: OpenFile, label: Label): Promise<void> {
  await withChunk(reactor, async (at) => {
    reactor.arena.bytes.set(encode(label), at);
    await writeWhole(reactor, file, at, CHUNK, 0);
  });
}

/** Errors: EBADMSG for another label, or none. */
export async function checkLabel(reactor: Reactor, file: OpenFile, label: Label): Promise<void> {
  await withChunk(reactor, async (at) => {
    const got = await readWhole(reactor, file, at, CHUNK, 0);
    const found = Buffer.from(reactor.arena.bytes.subarray(at, at + LABEL_BYTES));
    if (got === CHUNK && found.equals(encode(label).subarray(0, LABEL_BYTES))) return;
    throw new BlksnapError(
      'EBADMSG',
      `"${file.path}" is not the storage of snapshot ${label.id}: it does not begin with its label`,
    );
  });
}

async function withChunk(reactor: Reactor, use: (at: number) => Promise<void>): Promise<void> {
  const at = reactor.arena.allocate(CHUNK);
  if (at === NO_MEMORY) throw new BlksnapError('ENOMEM', 'Cannot label diff storage: the arena is full; try again');
  try {
    await use(at);
  } finally {
    reactor.arena.release(at);
  }
}
