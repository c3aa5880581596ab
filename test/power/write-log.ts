/** The log of dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst): every write to a disk, in the
 *  order in which they became certain, and a power loss at any place of it.
 *
 *  Little-endian. The first sector: magic u64, version u64 (1), number of entries u64, sector size u32. Then, for each
 *  entry, a sector with: sector u64, number of sectors u64, flags u64, length of what follows in it u64 (a mark's
 *  text); and the data, but of a discard. Sectors of entries are of 512 bytes. */

import fs from 'node:fs';
import { isZero } from '../../src/util/zeroes.ts';

const MAGIC = 0x6a736677736872n;
const ENTRY = { sector: 0, count: 8, flags: 16, textLength: 24, text: 32 } as const;
const FLUSH = 1n;
const FUA = 2n;
const DISCARD = 4n;
const MARK = 8n;
const SECTOR = 512;
const PIECE = 2 ** 20;

interface Entry {
  readonly offset: number;
  readonly length: number;
  /** Where its data is in the log; null for a discard and a mark. */
  readonly dataAt: number | null;
  /** Whether all that came before is certain when this one is. */
  readonly barrier: boolean;
  readonly mark: string | null;
}

export class WriteLog {
  readonly entries: readonly Entry[];
  readonly #fd: number;

  constructor(path: string) {
    this.#fd = fs.openSync(path, 'r');
    const first = this.#read(0, 4096);
    if (first.readBigUInt64LE(0) !== MAGIC) throw new Error(`${path} is no log of dm-log-writes`);
    const sectorSize = first.readUInt32LE(24);
    const entries: Entry[] = [];
    let at = sectorSize;
    for (let left = Number(first.readBigUInt64LE(16)); left > 0; left--) {
      const header = this.#read(at, sectorSize);
      const flags = header.readBigUInt64LE(ENTRY.flags);
      const length = Number(header.readBigUInt64LE(ENTRY.count)) * SECTOR;
      const text = header.toString('utf8', ENTRY.text, ENTRY.text + Number(header.readBigUInt64LE(ENTRY.textLength)));
      const hasData = (flags & (DISCARD | MARK)) === 0n && length > 0;
      at += sectorSize;
      entries.push({
        offset: Number(header.readBigUInt64LE(ENTRY.sector)) * SECTOR,
        length: (flags & MARK) === 0n ? length : 0,
        dataAt: hasData ? at : null,
        barrier: (flags & (FLUSH | FUA)) !== 0n,
        mark: (flags & MARK) === 0n ? null : text,
      });
      if (hasData) at += length;
    }
    this.entries = entries;
  }

  /** Entries [from, to), done to a file as the disk did them. A discard leaves zeros. */
  replay(target: number, range: { readonly from: number; readonly to: number }): void {
    for (const { offset, length, dataAt } of this.entries.slice(range.from, range.to)) {
      for (let done = 0; done < length; done += PIECE) {
        const count = Math.min(PIECE, length - done);
        if (dataAt !== null) fs.writeSync(target, this.#read(dataAt + done, count), 0, count, offset + done);
        else clear(target, offset + done, count);
      }
    }
  }

  close(): void {
    fs.closeSync(this.#fd);
  }

  #read(at: number, length: number): Buffer {
    const bytes = Buffer.alloc(length);
    for (let done = 0; done < length;) {
      const got = fs.readSync(this.#fd, bytes, done, length - done, at + done);
      if (got === 0) throw new Error(`the log ends at ${at + done}`);
      done += got;
    }
    return bytes;
  }
}

/** Zeros, but no memory for what is a hole already. */
function clear(target: number, offset: number, length: number): void {
  const bytes = Buffer.alloc(length);
  const got = fs.readSync(target, bytes, 0, length, offset);
  if (!isZero(bytes.subarray(0, got))) fs.writeSync(target, bytes.fill(0), 0, length, offset);
}
