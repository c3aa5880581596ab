/** Opens a qcow2 image with all that it rests on, as one read-only device.
 *
 *  A backing file's name comes out of a file that may not be ours. It is taken as a path relative to the image that
 *  names it, never as a protocol; `allowBacking` has the last word on the real path. A backing format that is not
 *  stated is refused, not guessed: a guest decides what a raw disk looks like. */

import fs from 'node:fs';
import path from 'node:path';
import { BlksnapError, toBlksnapError } from '../util/errors.ts';
import { alignUp, MIB } from '../util/units.ts';
import type { BioPool } from '../block/bio.ts';
import type { BlockDevice } from '../block/device.ts';
import { openDevice } from '../block/open.ts';
import { borrow, readWhole } from '../io/files.ts';
import type { OpenFile } from '../io/files.ts';
import type { Reactor } from '../io/reactor.ts';
import { CompressedReader } from './compressed-reader.ts';
import { Qcow2Device } from './device.ts';
import { decodeHeader, HEADER_READ_BYTES } from './header.ts';
import type { Qcow2Header } from './header.ts';
import { TableCache } from './table-cache.ts';

/** Images in a chain, the top and a raw base included. */
const MAX_CHAIN = 256;
/** Of the whole chain: the tables of 256 GiB of disk in clusters of 64 KiB. */
const TABLE_CACHE_BYTES = 32 * MIB;

export interface OpenQcow2Options {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  /** Asked for every backing file, with its real path (no symbolic links left). False refuses it with EACCES. */
  readonly allowBacking?: (path: string) => boolean;
}

interface Layer {
  readonly file: OpenFile;
  readonly fileBytes: number;
  readonly header: Qcow2Header;
}

/** For `allowBacking`: only files in this directory or below. */
export function insideDirectory(directory: string): (file: string) => boolean {
  const root = fs.realpathSync(directory);
  return (file) => file.startsWith(root.endsWith(path.sep) ? root : root + path.sep);
}

/** Errors: ENOENT and the like for a file of the chain; EACCES a backing file that is not allowed; EINVAL not qcow2, or
 *  damaged; EOPNOTSUPP a feature that is not supported; EBUSY a raw base that
 *  is being written. */
export async function openQcow2(file: string, options: OpenQcow2Options): Promise<Qcow2Device> {
  const layers: Layer[] = [];
  let base: BlockDevice | null = null;
  let shared: Shared | null = null;
  try {
    base = await openChain(file, layers, options);
    shared = await openShared(layers, options.reactor);
    return stack(layers, base, shared, options);
  } catch (cause) {
    shared?.close();
    await base?.close();
    for (const layer of layers) fs.closeSync(layer.file.fd);
    throw cause;
  }
}

/** Opens image after image into `layers`, top first. Resolves with the raw device at the bottom, if there is one. */
async function openChain(top: string, layers: Layer[], options: OpenQcow2Options): Promise<BlockDevice | null> {
  const seen = new Set<string>();
  for (let file = top; ;) {
    const layer = await openLayer(file, seen, layers, options.reactor);
    const { backing } = layer.header;
    if (backing === null) return null;
    if (layers.length >= MAX_CHAIN) {
      throw new BlksnapError('EOPNOTSUPP', `Cannot open "${top}": more than ${MAX_CHAIN} images in its backing chain`);
    }
    const below = backingPath(file, backing.name, options);
    switch (backing.format) {
      case 'qcow2':
        file = below;
        break;
      case 'raw':
        return await openRaw(below, file, options);
      case null:
        throw new BlksnapError(
          'EOPNOTSUPP',
          `Cannot open "${file}": it does not state the format of its backing file "${backing.name}"; state it with qemu-img rebase -u -F`,
        );
      default:
        throw new BlksnapError(
          'EOPNOTSUPP',
          `Cannot open "${file}": its backing file has format "${backing.format}", want qcow2 or raw`,
        );
    }
  }
}

async function openLayer(file: string, seen: Set<string>, layers: Layer[], reactor: Reactor): Promise<Layer> {
  let fd: number;
  try {
    // Looked at before it is opened: opening a pipe would wait for its other end.
    if (!fs.statSync(file).isFile()) throw new BlksnapError('EINVAL', 'it is not a regular file');
    fd = fs.openSync(file, 'r');
  } catch (cause) {
    throw toBlksnapError(cause, `Cannot open qcow2 image "${file}"`);
  }
  try {
    const stat = fs.fstatSync(fd, { bigint: true });
    const identity = `${stat.dev}:${stat.ino}`;
    if (seen.has(identity))
      throw new BlksnapError('EINVAL', `Cannot open qcow2 image "${file}": its backing chain comes back to it`);
    seen.add(identity);
    const fileBytes = Number(stat.size);
    const header = decodeHeader(await readStart({ fd, path: file }, fileBytes, reactor), fileBytes, file);
    const layer = { file: { fd, path: file }, fileBytes, header };
    layers.push(layer);
    return layer;
  } catch (cause) {
    fs.closeSync(fd);
    throw cause;
  }
}

async function readStart(file: OpenFile, fileBytes: number, reactor: Reactor): Promise<Uint8Array> {
  const length = Math.min(HEADER_READ_BYTES, fileBytes);
  const at = await borrow(reactor.arena, alignUp(length, 4096));
  try {
    const count = await readWhole(reactor, file, at, length, 0);
    return reactor.arena.bytes.slice(at, at + count);
  } finally {
    reactor.arena.release(at);
  }
}

function backingPath(image: string, name: string, options: OpenQcow2Options): string {
  if (/^[^/]*:/.test(name)) {
    throw new BlksnapError(
      'EOPNOTSUPP',
      `Cannot open "${image}": its backing file "${name}" is not a path but a protocol`,
    );
  }
  let real: string;
  try {
    real = fs.realpathSync(path.resolve(path.dirname(image), name));
  } catch (cause) {
    throw toBlksnapError(cause, `Cannot open backing file "${name}" of "${image}"`);
  }
  if (options.allowBacking?.(real) === false) {
    throw new BlksnapError(
      'EACCES',
      `Cannot open "${image}": its backing file "${name}" is "${real}", which is outside of where it may be`,
    );
  }
  return real;
}

async function openRaw(file: string, image: string, options: OpenQcow2Options): Promise<BlockDevice> {
  try {
    return await openDevice(file, { reactor: options.reactor, readOnly: true });
  } catch (cause) {
    throw toBlksnapError(cause, `Cannot open backing file of "${image}"`);
  }
}

/** What the images of a chain have in common. */
interface Shared {
  readonly tables: TableCache;
  readonly compressed: CompressedReader;
  close(): void;
}

async function openShared(layers: readonly Layer[], reactor: Reactor): Promise<Shared> {
  const tables = new TableCache(reactor, TABLE_CACHE_BYTES);
  const compressed = new CompressedReader(reactor, 2 ** Math.max(...layers.map((layer) => layer.header.clusterBits)));
  const close = (): void => {
    tables.close();
    compressed.close();
  };
  try {
    await tables.open();
    await compressed.open();
  } catch (cause) {
    close();
    throw cause;
  }
  return { tables, compressed, close };
}

/** Puts a device on each image, from the bottom up. The top one closes what is shared. */
function stack(
  layers: readonly Layer[],
  base: BlockDevice | null,
  shared: Shared,
  options: OpenQcow2Options,
): Qcow2Device {
  const { reactor, pool } = options;
  const { tables, compressed } = shared;
  const count = { looks: 0 };
  let below = base;
  for (const layer of layers.toReversed()) {
    const onClose = layer === layers[0] ? shared.close : (): void => {};
    const device: Qcow2Device = new Qcow2Device({
      reactor,
      pool,
      tables,
      compressed,
      count,
      ...layer,
      backing: below,
      onClose,
    });
    if (device.size % device.logicalBlockSize !== 0) {
      throw new BlksnapError(
        'EINVAL',
        `Cannot open "${device.name}": size ${device.size} is not a multiple of ${device.logicalBlockSize}`,
      );
    }
    below = device;
  }
  return below as Qcow2Device;
}
