/** A device of the kernel, served by this process: what it looks like, that every operation arrives as the bio it should
 *  be, and that errors and lack of memory do no harm. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { BioPool, DISCARD, FLUSH, FUA, NO_HOLE, READ, WRITE, WRITE_ZEROES } from '../../../src/block/bio.ts';
import type { Bio } from '../../../src/block/bio.ts';
import type { BlockDevice } from '../../../src/block/device.ts';
import { MemoryDevice } from '../../../src/block/memory-device.ts';
import { openReactor } from '../../../src/io/open.ts';
import type { Reactor } from '../../../src/io/reactor.ts';
import { UblkProvider } from '../../../src/kernel/ublk.ts';
import { servedExport, UblkQueues } from '../../../src/kernel/ublk-queues.ts';
import { MemoryLine } from '../../../src/nbd/memory-line.ts';
import { ERRNO } from '../../../src/util/errors.ts';
import { KIB, MIB } from '../../../src/util/units.ts';

const exec = promisify(execFile);
/** A program's standard output; the event loop, and with it the device, goes on. */
const run = async (program: string, ...args: string[]): Promise<string> => (await exec(program, args)).stdout;

const SIZE = 16 * MIB;
const WISH = { id: 'test', exportName: 'disk' };

/** Notes the bios that pass, and ends those with an error that a test wants. */
class Watched extends MemoryDevice {
  readonly seen: string[] = [];
  failWith: number | null = null;
  held: Bio[] | null = null;

  override submit(bio: Bio): void {
    const names = { [READ]: 'read', [WRITE]: 'write', [FLUSH]: 'flush', [DISCARD]: 'discard', [WRITE_ZEROES]: 'zero' };
    const flags = `${(bio.flags & FUA) !== 0 ? '+fua' : ''}${(bio.flags & NO_HOLE) !== 0 ? '+allocated' : ''}`;
    this.seen.push(`${names[bio.op]}${flags} ${bio.offset} ${bio.length}`);
    if (this.failWith !== null) bio.end(this.failWith);
    else if (this.held === null) super.submit(bio);
    else this.held.push(bio);
  }
}

let reactor: Reactor;
let pool: BioPool;
let queues: UblkQueues;
let device: Watched;
let provider: UblkProvider;
let node: string;

beforeAll(async () => {
  await run('modprobe', 'ublk_drv');
  reactor = await openReactor({ driver: 'uring', arenaBytes: 2 * MIB, cooperative: true });
  pool = new BioPool();
  queues = new UblkQueues({ reactor, pool, line: new MemoryLine(reactor, 10_000, () => {}) });
});
afterAll(async () => {
  expect(pool.lent).toBe(0);
  expect(reactor.arena.lentBytes).toBe(0);
  await reactor.close();
});

beforeEach(async () => await serve(new Watched('disk', SIZE, reactor.arena)));
afterEach(async () => {
  await provider.remove(WISH.id);
  expect(fs.existsSync(node)).toBe(false);
});

async function serve(served: Watched): Promise<void> {
  device = served;
  const found = (): BlockDevice => device;
  provider = new UblkProvider({
    driver: reactor.driver,
    serve: async (_name, queue) => queues.serve(found(), queue),
    ended: (id) => queues.ended(id),
    describe: async () => servedExport(found()),
  });
  expect(provider.obstacle({ load: true })).toBeNull();
  node = await provider.create(WISH, { preferred: null });
  device.seen.length = 0;
}

test('looks as the disk does', async () => {
  const columns = await run('lsblk', '-bdno', 'SIZE,LOG-SEC,PHY-SEC,RO,ROTA,DISC-GRAN', node);
  expect(columns.trim().split(/\s+/)).toEqual([String(SIZE), '512', '512', '0', '0', '512']);
  const queue = `/sys/block/${node.slice('/dev/'.length)}/queue`;
  expect(fs.readFileSync(`${queue}/write_cache`, 'utf8')).toBe('write back\n');
  expect(fs.readFileSync(`${queue}/fua`, 'utf8')).toBe('1\n');
  expect(fs.readFileSync(`${queue}/scheduler`, 'utf8')).toMatch(/^\[none\]/);
});

test('reads and writes what is there, in requests of all lengths', async () => {
  const source = `${fs.mkdtempSync('/tmp/ublk-')}/source`;
  fs.writeFileSync(
    source,
    Uint8Array.from({ length: 3 * MIB }, (_, i) => (i * 7 + (i >> 9)) & 0xff),
  );
  await run('dd', `if=${source}`, `of=${node}`, 'bs=1M', 'seek=1', 'oflag=direct', 'conv=notrunc');
  expect(Buffer.compare(device.bytes.subarray(MIB, 4 * MIB), fs.readFileSync(source))).toBe(0);
  device.bytes.set([1, 2, 3], 512 * 77);
  await run('dd', `if=${node}`, `of=${source}`, 'bs=512', 'skip=77', 'count=1', 'iflag=direct');
  expect([...fs.readFileSync(source).subarray(0, 4)]).toEqual([1, 2, 3, 0]);
  await run('dd', `if=${node}`, `of=${source}`, 'bs=3M', 'skip=1048576', 'count=1', 'iflag=direct,skip_bytes');
  expect(Buffer.compare(device.bytes.subarray(MIB, 4 * MIB), fs.readFileSync(source))).toBe(0);
  expect(device.seen).toContain(`read ${512 * 77} 512`);
});

test('hands flushes, FUA, discards and zeroes on', async () => {
  device.bytes.fill(0xee);
  await run('dd', 'if=/dev/zero', `of=${node}`, 'bs=4k', 'count=1', 'oflag=direct,dsync', 'conv=notrunc');
  expect(device.seen.filter((one) => one.startsWith('write+fua 0 4096') || one.startsWith('flush'))).not.toEqual([]);
  await run('sync', node);
  expect(device.seen.some((one) => one.startsWith('flush'))).toBe(true);
  device.seen.length = 0;
  await run('blkdiscard', '--offset', String(MIB), '--length', String(2 * MIB), node);
  expect(device.seen).toContain(`discard ${MIB} ${2 * MIB}`);
  await run('blkdiscard', '--zeroout', '--offset', String(8 * MIB), '--length', String(4 * MIB), node);
  expect(device.seen.filter((one) => one.startsWith('zero'))).toEqual([`zero+allocated ${8 * MIB} ${4 * MIB}`]);
  expect(device.bytes.subarray(8 * MIB, 12 * MIB).every((byte) => byte === 0)).toBe(true);
  expect(device.bytes[12 * MIB]).toBe(0xee);
});

test('fails what the disk fails, and goes on', async () => {
  const read = (): Promise<string> => run('dd', `if=${node}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct');
  // An errno at which the kernel would try again for ever.
  device.failWith = ERRNO.ENOMEM;
  await expect(read()).rejects.toThrow(/Input\/output error/);
  device.failWith = ERRNO.ENOSPC;
  const write = run('dd', 'if=/dev/zero', `of=${node}`, 'bs=4k', 'count=1', 'oflag=direct', 'conv=notrunc');
  await expect(write).rejects.toThrow(/No space left/);
  device.failWith = null;
  await read();
});

test('waits for memory when there is less than is asked for', async () => {
  // Up to 128 requests of 64 KiB: four times the arena, and eight times what requests may have of it.
  const job = ['--name=x', `--filename=${node}`, '--direct=1', '--ioengine=libaio', '--iodepth=128', '--rw=randwrite'];
  const verify = ['--bs=64k', '--size=16m', '--verify=crc32c', '--do_verify=1', '--verify_fatal=1'];
  device.held = [];
  const fio = run('fio', ...job, ...verify, '--minimal');
  await expect.poll(() => device.held!.length).toBe(MIB / (64 * KIB));
  await new Promise((resolve) => setTimeout(resolve, 200));
  const held = device.held;
  expect(held).toHaveLength(MIB / (64 * KIB));
  device.held = null;
  for (const bio of held) device.submit(bio);
  await fio;
});

test('is read-only where the disk is', async () => {
  await provider.remove(WISH.id);
  await serve(new Watched('disk', SIZE, reactor.arena, { readOnly: true }));
  expect(fs.readFileSync(`/sys/block/${node.slice('/dev/'.length)}/ro`, 'utf8')).toBe('1\n');
  const write = run('dd', 'if=/dev/zero', `of=${node}`, 'bs=4k', 'count=1', 'oflag=direct', 'conv=notrunc');
  await expect(write).rejects.toThrow();
});

test('has the same path again, or another where that is taken', async () => {
  const again = await provider.create({ id: 'other', exportName: 'disk' }, { preferred: node });
  expect(again).toMatch(/^\/dev\/ublkb\d+$/);
  expect(again).not.toBe(node);
  await provider.remove(WISH.id);
  await expect.poll(() => fs.existsSync(node)).toBe(false);
  expect(await provider.create(WISH, { preferred: node })).toBe(node);
  await provider.remove('other');
});

test('goes while a program has it open, which then finds nothing there', async () => {
  const fd = await fs.promises.open(node, 'r');
  await provider.remove(WISH.id);
  expect((await fd.read(Buffer.alloc(4096), 0, 4096, 8 * MIB)).bytesRead).toBe(0);
  await fd.close();
});
