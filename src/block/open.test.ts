/** What cannot be a disk is refused with a reason; devices in trouble fail their bios. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { openDescriptors } from '../../test/contracts/reactor-bench.ts';
import { requireRoot } from '../../test/requirements.ts';
import { openReactor } from '../io/open.ts';
import type { Reactor } from '../io/reactor.ts';
import { ERRNO } from '../util/errors.ts';
import { MIB } from '../util/units.ts';
import { BioPool, FLUSH, READ, WRITE, runBio } from './bio.ts';
import { openDevice } from './open.ts';

let dir: string;
let reactor: Reactor;
let descriptors: number;
const pool = new BioPool();

beforeEach(async () => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-open-'));
  reactor = await openReactor({ driver: 'portable', arenaBytes: 4 * MIB });
  descriptors = openDescriptors();
});
afterEach(async () => {
  expect(openDescriptors()).toBe(descriptors);
  await reactor.close();
  fs.rmSync(dir, { recursive: true });
});

const file = (name: string, size: number): string => {
  const where = path.join(dir, name);
  fs.writeFileSync(where, new Uint8Array(size));
  return where;
};

it('leaves the times of the file as they were: opening is no write', async () => {
  const where = file('disk', MIB);
  const before = fs.statSync(where, { bigint: true });
  await new Promise((resolve) => setTimeout(resolve, 20)); // longer than the step of the file system's clock
  const device = await openDevice(where, { reactor });
  await device.close();
  const after = fs.statSync(where, { bigint: true });
  expect([after.mtimeNs, after.ctimeNs]).toEqual([before.mtimeNs, before.ctimeNs]);
});

describe('openDevice refuses', () => {
  it.each([
    ['what is missing', () => path.join(dir, 'none'), 'ENOENT', 'none'],
    ['a directory', () => dir, 'EISDIR', 'directory'],
    ['an empty file', () => file('empty', 0), 'EINVAL', 'empty'],
    ['a size that is no whole number of sectors', () => file('odd', 1000), 'EINVAL', '1000 is not a multiple of 512'],
    ['a character device', () => '/dev/null', 'EINVAL', 'block device'],
  ])('%s', async (_what, where, code, words) => {
    await expect(openDevice(where(), { reactor })).rejects.toMatchObject({
      code,
      message: expect.stringContaining(words) as string,
    });
  });

  it('a FIFO, without waiting for its other end', async () => {
    const fifo = path.join(dir, 'fifo');
    execFileSync('mkfifo', [fifo]);
    await expect(openDevice(fifo, { reactor })).rejects.toMatchObject({ code: 'EINVAL' });
  });

  it('a file that may not be written, unless read-only', async (context) => {
    context.skip(process.getuid?.() === 0, 'root may write everything');
    const where = file('locked', 512);
    fs.chmodSync(where, 0o400);
    await expect(openDevice(where, { reactor })).rejects.toMatchObject({ code: 'EACCES' });
    await (await openDevice(where, { reactor, readOnly: true })).close();
  });
});

describe('a read-only device', () => {
  it('reads, and ends changes with EPERM', async () => {
    const device = await openDevice(file('a', MIB), { reactor, readOnly: true });
    const at = reactor.arena.allocate(512);
    expect(await runBio(pool, device, { op: READ, offset: 0, length: 512, at })).toBe(0);
    expect(await runBio(pool, device, { op: WRITE, offset: 0, length: 512, at })).toBe(ERRNO.EPERM);
    expect(await runBio(pool, device, { op: FLUSH, offset: 0, length: 0 })).toBe(0);
    expect(device.capabilities).toMatchObject({ discard: false, writeZeroes: false });
    reactor.arena.release(at);
    await device.close();
  });
});

describe('a file that has shrunk', () => {
  it('ends reads past its end with EIO, and has no extents', async () => {
    const where = file('a', MIB);
    const device = await openDevice(where, { reactor });
    fs.truncateSync(where, 4096 + 100);
    const at = reactor.arena.allocate(8192);
    expect(await runBio(pool, device, { op: READ, offset: 0, length: 4096, at })).toBe(0);
    expect(await runBio(pool, device, { op: READ, offset: 0, length: 8192, at })).toBe(ERRNO.EIO);
    expect(await runBio(pool, device, { op: READ, offset: 64 * 1024, length: 512, at })).toBe(ERRNO.EIO);
    await expect(device.extents(0, MIB)).rejects.toMatchObject({ code: 'EIO' });
    reactor.arena.release(at);
    await device.close();
  });
});

describe('a full file system', () => {
  it('ends writes with ENOSPC; what was there stays', async (context) => {
    requireRoot(context);
    const mount = path.join(dir, 'small');
    fs.mkdirSync(mount);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'none', mount]);
    try {
      const where = path.join(mount, 'disk');
      fs.writeFileSync(where, new Uint8Array(512 * 1024).fill(7));
      fs.truncateSync(where, 4 * MIB);
      const device = await openDevice(where, { reactor });
      const at = reactor.arena.allocate(MIB);
      expect(await runBio(pool, device, { op: WRITE, offset: MIB, length: MIB, at })).toBe(ERRNO.ENOSPC);
      expect(await runBio(pool, device, { op: READ, offset: 0, length: 512 * 1024, at })).toBe(0);
      expect(reactor.arena.bytes.subarray(at, at + 512 * 1024).every((byte) => byte === 7)).toBe(true);
      reactor.arena.release(at);
      await device.close();
    } finally {
      execFileSync('umount', [mount]);
    }
  });
});
