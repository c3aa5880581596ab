/** The corpus: inputs that are kept, one file each, in test/corpus/<target>/. Recordings of real clients and servers
 *  (`recorded-…`), cases that somebody thought of, and what was found (`found-…`), as small as it could be made. All of them
 *  run in every `npm test`. What is long is compressed. */

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import zlib from 'node:zlib';

const CORPUS = path.join(import.meta.dirname, '../corpus');
const PACKED = '.gz';
const PACK_FROM_BYTES = 4096;

export interface Kept {
  readonly name: string;
  readonly bytes: Uint8Array;
}

export function readCorpus(target: string): Kept[] {
  const directory = path.join(CORPUS, target);
  if (!fs.existsSync(directory)) return [];
  return fs
    .readdirSync(directory)
    .toSorted()
    .map((name) => ({ name, bytes: readInput(path.join(directory, name)) }));
}

export function readInput(file: string): Uint8Array {
  const bytes = fs.readFileSync(file);
  return file.endsWith(PACKED) ? zlib.gunzipSync(bytes) : bytes;
}

/** Keeps an input; its path. Without a name it is one that was found. */
export function keep(target: string, bytes: Uint8Array, name?: string): string {
  const directory = path.join(CORPUS, target);
  fs.mkdirSync(directory, { recursive: true });
  const base = name ?? `found-${createHash('sha256').update(bytes).digest('hex').slice(0, 10)}`;
  const packed = bytes.length >= PACK_FROM_BYTES;
  const file = path.join(directory, packed ? base + PACKED : base);
  fs.writeFileSync(file, packed ? zlib.gzipSync(bytes, { level: 9 }) : bytes);
  return file;
}
