/** The hot path allocates nothing: a million requests, and what they left on the heap.
 *
 *  Not quite nothing is possible: a number that goes to a system call through FFI and does not fit 32 bits (an
 *  address), or comes back as a float (the time), is boxed in 16 bytes. So each way has a bound that leaves room for
 *  what it has of these, and none for an object: the smallest one with a field has 32 bytes, a closure 64. */

import { execFile } from 'node:child_process';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { onTmpfs } from '../src/io/files.ts';
import { ffiAvailable } from '../src/io/sys.ts';

const REQUESTS = 1_000_000;
const PROGRAM = path.join(import.meta.dirname, 'allocation-load.ts');
const FLAGS = ['--expose-gc', '--max-semi-space-size=256', '--min-semi-space-size=256', '--import', 'tsx'];

/** Bytes per request, in the best part of the run. */
async function allocated(way: 'disk' | 'page-cache' | 'nbd', rw: 'read' | 'write'): Promise<number> {
  const { stdout } = await promisify(execFile)(process.execPath, [...FLAGS, PROGRAM, way, rw, String(REQUESTS)]);
  return Math.min(...(JSON.parse(stdout) as number[]));
}

describe.skipIf(!ffiAvailable())('a million requests of 4 KiB', () => {
  it('leave no object of a read on a tracked disk', async () => {
    expect(await allocated('disk', 'read')).toBeLessThan(64);
  });

  it('leave no object of a read on a tracked disk that the page cache holds', async (context) => {
    context.skip(onTmpfs(os.tmpdir()), 'needs a file system on a disk: TMPDIR is in memory');
    expect(await allocated('page-cache', 'read')).toBeLessThan(64);
  });

  it('leave no object of a write on a tracked disk', async () => {
    expect(await allocated('disk', 'write')).toBeLessThan(72);
  });

  it('leave no object of a read over NBD, at either end', async () => {
    expect(await allocated('nbd', 'read')).toBeLessThan(96);
  });

  it('leave no object of a write over NBD, at either end', async () => {
    expect(await allocated('nbd', 'write')).toBeLessThan(96);
  });
});
