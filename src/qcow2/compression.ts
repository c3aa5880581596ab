/** The two codecs of compressed clusters. Synchronous: a cluster takes about as long as a system call.
 *
 *  zlib is raw deflate with a window of 4 KiB when written (QEMU reads no larger one). zstd is the system's
 *  libzstd through FFI, else node:zlib where it has zstd (Node 22.15), else refused when it is needed. Both decompress
 *  into exactly one cluster: what would grow larger is an error before it takes memory. */

import zlib from 'node:zlib';
import { ffi } from '../io/ffi.ts';
import { BlksnapError } from '../util/errors.ts';
import type { CompressionType } from './header.ts';

const DEFLATE_WINDOW_BITS = 12;
const DEFLATE_LEVEL = 1;
const ZSTD_LEVEL = 1;
const ZSTD_MAGIC = 0xfd2f_b528;
/** Of one cluster; writers make one. An enemy could fill the cluster's room with frames of nothing. */
const MAX_FRAMES = 64;

export interface ClusterCodec {
  readonly type: CompressionType;
  /** Compresses a cluster; null when it would not get smaller. */
  compress(cluster: Uint8Array): Uint8Array | null;
  /** Fills `cluster` from compressed bytes that something else may follow. False when they are damaged. */
  decompress(compressed: Uint8Array, cluster: Uint8Array): boolean;
}

const deflate: ClusterCodec = {
  type: 'zlib',
  compress(cluster) {
    const out = zlib.deflateRawSync(cluster, {
      windowBits: DEFLATE_WINDOW_BITS,
      level: DEFLATE_LEVEL,
      chunkSize: cluster.length,
    });
    return out.length < cluster.length ? out : null;
  },
  decompress(compressed, cluster) {
    try {
      const out = zlib.inflateRawSync(compressed, {
        chunkSize: Math.max(64, cluster.length),
        maxOutputLength: cluster.length,
      });
      if (out.length !== cluster.length) return false;
      cluster.set(out);
      return true;
    } catch {
      return false;
    }
  },
};

/** The two zstd functions that we need of whatever library is there. */
interface Zstd {
  compress(source: Uint8Array): Uint8Array;
  /** Decompresses exactly one frame. Returns the bytes written, or -1. */
  decompress(frame: Uint8Array, target: Uint8Array): number;
}

let zstdCodec: ClusterCodec | null = null;

/** Errors: EOPNOTSUPP for zstd where no library has it. */
export function clusterCodec(type: CompressionType): ClusterCodec {
  if (type === 'zlib') return deflate;
  zstdCodec ??= makeZstdCodec(systemZstd() ?? nodeZstd());
  return zstdCodec;
}

function makeZstdCodec(zstd: Zstd | null): ClusterCodec {
  if (zstd === null) {
    throw new BlksnapError(
      'EOPNOTSUPP',
      'Cannot use zstd compression: there is no libzstd here and none in this Node; install it, or use Node 22.15 or newer',
    );
  }
  return {
    type: 'zstd',
    compress(cluster) {
      const out = zstd.compress(cluster);
      return out.length < cluster.length ? out : null;
    },
    decompress(compressed, cluster) {
      let done = 0;
      let frames = 0;
      for (let at = 0; done < cluster.length;) {
        if (++frames > MAX_FRAMES) return false;
        const length = zstdFrameLength(compressed, at);
        if (length < 0) return false;
        const count = zstd.decompress(compressed.subarray(at, at + length), cluster.subarray(done));
        if (count < 0) return false;
        at += length;
        done += count;
      }
      return true;
    },
  };
}

/** Length of the zstd frame at `at`, -1 when there is no whole one (RFC 8878, section 3.1.1). The library wants
 *  it exact, the image tells it only in sectors. */
export function zstdFrameLength(bytes: Uint8Array, at: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (at + 5 > bytes.length || view.getUint32(at, true) !== ZSTD_MAGIC) return -1;
  const descriptor = bytes[at + 4]!;
  const singleSegment = (descriptor >> 5) & 1;
  const contentSizeBytes = [singleSegment, 2, 4, 8][descriptor >> 6]!;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3]!;
  let position = at + 5 + (1 - singleSegment) + dictionaryBytes + contentSizeBytes;
  for (;;) {
    if (position + 3 > bytes.length) return -1;
    const block = bytes[position]! | (bytes[position + 1]! << 8) | (bytes[position + 2]! << 16);
    const runLength = ((block >> 1) & 3) === 1;
    position += 3 + (runLength ? 1 : block >> 3);
    if ((block & 1) === 1) break;
  }
  if ((descriptor & 4) !== 0) position += 4;
  return position <= bytes.length ? position - at : -1;
}

function systemZstd(): Zstd | null {
  for (const name of ['libzstd.so.1', 'libzstd.1.dylib', '/opt/homebrew/lib/libzstd.1.dylib']) {
    let library;
    try {
      library = ffi().load(name);
    } catch {
      continue;
    }
    const bound = library.func('size_t ZSTD_compressBound(size_t)');
    const compress = library.func('size_t ZSTD_compress(_Out_ uint8_t *, size_t, const uint8_t *, size_t, int)');
    const decompress = library.func('size_t ZSTD_decompress(_Out_ uint8_t *, size_t, const uint8_t *, size_t)');
    const isError = library.func('unsigned int ZSTD_isError(size_t)');
    let scratch = new Uint8Array(0);
    return {
      compress(source) {
        const limit = Number(bound(source.length));
        if (scratch.length < limit) scratch = new Uint8Array(limit);
        const count: number | bigint = compress(scratch, scratch.length, source, source.length, ZSTD_LEVEL);
        return isError(count) === 0 ? scratch.subarray(0, Number(count)) : source;
      },
      decompress(frame, target) {
        const count: number | bigint = decompress(target, target.length, frame, frame.length);
        return isError(count) === 0 ? Number(count) : -1;
      },
    };
  }
  return null;
}

function nodeZstd(): Zstd | null {
  type Options = { maxOutputLength?: number };
  const candidates: Partial<
    Record<'zstdCompressSync' | 'zstdDecompressSync', (bytes: Uint8Array, options?: Options) => Uint8Array>
  > = zlib as object;
  const { zstdCompressSync, zstdDecompressSync } = candidates;
  if (zstdCompressSync === undefined || zstdDecompressSync === undefined) return null;
  return {
    compress: (source) => zstdCompressSync(source),
    decompress(frame, target) {
      try {
        const out = zstdDecompressSync(frame, { maxOutputLength: target.length });
        target.set(out);
        return out.length;
      } catch {
        return -1;
      }
    },
  };
}
