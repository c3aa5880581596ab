/** Each target: what it does to bios, and its lines as dmsetup prints them. */

import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MappedWorld } from '../../test/mapped.ts';
import { DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES, runBio } from '../block/bio.ts';
import type { Bio } from '../block/bio.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { completed } from '../io/reactor.ts';
import { ERRNO } from '../util/errors.ts';
import { isZero } from '../util/zeroes.ts';

const SIZE = 256 * 512;
let world: MappedWorld;
let a: MemoryDevice;
let b: MemoryDevice;

beforeEach(async () => {
  world = await MappedWorld.open();
  a = world.memory('a', SIZE);
  b = world.memory('b', SIZE);
});
afterEach(() => world.close());

const block = (value: number, sectors = 1): Buffer => Buffer.alloc(512 * sectors, value);

/** A device that fails what it is told to. */
class FailingDevice extends MemoryDevice {
  fails: (bio: Bio) => boolean = () => true;
  override submit(bio: Bio): void {
    if (this.fails(bio)) bio.end(ERRNO.EIO);
    else super.submit(bio);
  }
}
function failing(name: string): FailingDevice {
  const device = new FailingDevice(name, SIZE, world.reactor.arena);
  world.devices.set(name, device);
  return device;
}

describe('tables that are wrong', () => {
  it.each([
    ['0 8 lineal a 0', /"lineal": known are linear, striped/],
    ['0 8 linear a', /start sector of device "a" is missing/],
    ['0 8 linear a x', /"x", want a sector/],
    ['0 8 linear a 0 0', /one argument too many/],
    ['0 8 linear a 249', /ends at sector 257 of "a", which has 256/],
    ['0 8 linear nobody 0', /No device/],
    ['0 8 striped 0 8 a 0', /number of stripes is "0"/],
    ['0 8 striped 2 8 a 0 b 0', /no multiple of 2 chunks of 8/],
    ['0 16 striped 2 8 a 0', /a device is missing/],
    ['0 8 zero 1', /one argument too many/],
    ['0 8 mirror core 1 8 1 a 0', /number of legs/],
    ['0 8 mirror disk 2 c 8 2 a 0 b 0', /log is "disk", want core/],
    ['0 8 mirror core 2 8 maybe 2 a 0 b 0', /neither sync nor nosync/],
    ['0 8 delay a 0', /delay in milliseconds is missing/],
    ['0 8 flakey a 0 0 0', /both 0/],
    ['0 8 flakey a 0 1 1 1 explode', /unknown feature "explode"/],
    ['0 8 flakey a 0 1 1 2 drop_writes error_writes', /exclude each other/],
    ['0 8 flakey a 0 1 1 2 drop_writes', /says 2 feature words, and has 1/],
    ['0 8 flakey a 0 1 1 5 corrupt_bio_byte 0 r 1 0', /byte to corrupt is "0"/],
    ['0 8 dust a 0 500', /block size in bytes is "500"/],
    ['0 8 dust a 0 1536', /power of two/],
  ])('%s', async (table, words) => {
    await expect(world.map(table)).rejects.toThrow(words);
    expect(world.lent).toBe(0);
  });
});

describe('striped', () => {
  it('goes round over its devices, and tells which one failed', async () => {
    const c = failing('c');
    const device = await world.map('0 32 striped 2 8 a 16 c 0');
    expect(await world.write(device, 0, block(1, 8))).toBe(0);
    expect([...a.bytes.subarray(16 * 512, 24 * 512)].every((byte) => byte === 1)).toBe(true);
    expect(device.status()).toEqual(['0 32 striped 2 a c 1 AA']);
    expect(await world.write(device, 4 * 512, block(2, 8))).toBe(ERRNO.EIO);
    c.fails = () => false;
    expect(await world.write(device, 16 * 512, block(3, 16))).toBe(0);
    expect(c.bytes[8 * 512]).toBe(3);
    expect(device.status()).toEqual(['0 32 striped 2 a c 1 AD']);
    expect(device.table()).toEqual(['0 32 striped 2 8 a 16 c 0']);
    expect(await world.run(device, FLUSH)).toBe(0);
  });
});

describe('zero and error', () => {
  it('read as zeros and keep nothing, or fail', async () => {
    const device = await world.map('0 8 zero\n8 8 error\n16 8 linear a 0');
    expect(await world.write(device, 0, block(1))).toBe(0);
    expect(isZero((await world.read(device, 0, 512)) as Buffer)).toBe(true);
    expect(await device.extents(0, 4096)).toEqual([{ length: 4096, hole: true, zero: true }]);
    for (const op of [READ, WRITE, DISCARD, WRITE_ZEROES] as const) {
      expect(await world.run(device, op, 4096, 512)).toBe(ERRNO.EIO);
      expect(await world.run(device, op, 4096 - 512, 1024)).toBe(ERRNO.EIO);
    }
    expect(await world.run(device, FLUSH)).toBe(0);
    expect(device.status()).toEqual(['0 8 zero ', '8 8 error ', '16 8 linear ']);
    expect(() => device.message(0, ['x'])).toThrow(/does not understand "x"/);
    expect(() => device.message(24, ['x'])).toThrow(/no sector 24/);
  });
});

describe('mirror', () => {
  const healthOf = (line: string): string => / 1 ([ADSR]+) 1 core$/.exec(line)![1]!;

  it('copies its first leg to the others while it is written', async () => {
    a.bytes.fill(0x11);
    const device = await world.map('0 256 mirror core 1 8 2 a 0 b 0');
    const writes = Array.from({ length: 64 }, (_, i) => world.write(device, ((i * 37) % 256) * 512, block(0x80 + i)));
    expect(await Promise.all(writes)).toEqual(Array.from({ length: 64 }, () => 0));
    await expect.poll(() => device.status()[0]).toBe('0 256 mirror 2 a b 32/32 1 AA 1 core');
    expect(Buffer.from(a.bytes).equals(b.bytes)).toBe(true);
    expect(a.bytes[37 * 512]).toBe(0x81);
    expect(device.table()).toEqual(['0 256 mirror core 1 8 2 a 0 b 0']);
  });

  it('reads from another leg when one fails', async () => {
    const c = failing('c');
    b.bytes.fill(7);
    const device = await world.map('0 256 mirror core 2 64 nosync 2 c 0 b 0 1 handle_errors');
    expect(await world.read(device, 512, 512)).toEqual(block(7));
    expect(healthOf(device.status()[0]!)).toBe('RA');
    c.fails = () => false;
    expect(await world.read(device, 512, 512), 'the one that has not failed').toEqual(block(7));
    expect(device.table()).toEqual(['0 256 mirror core 2 64 nosync 2 c 0 b 0 1 handle_errors']);
  });

  it('goes on without a leg that failed a write, and never reads it again', async () => {
    const c = failing('c');
    c.fails = ({ op }) => op === WRITE;
    const device = await world.map('0 256 mirror core 2 64 nosync 2 c 0 b 0');
    expect(await world.write(device, 0, block(9))).toBe(0);
    expect(healthOf(device.status()[0]!)).toBe('DA');
    c.fails = () => false;
    expect(await world.read(device, 0, 512)).toEqual(block(9));
    expect(await world.write(device, 512, block(8))).toBe(0);
    expect(c.bytes[512]).toBe(0);
  });

  it('fails a write that no leg takes', async () => {
    failing('c');
    failing('d');
    const device = await world.map('0 256 mirror core 2 64 nosync 2 c 0 d 0');
    expect(await world.write(device, 0, block(9))).toBe(ERRNO.EIO);
    expect(await world.read(device, 0, 512)).toBe(ERRNO.EIO);
  });

  it('keeps to its first leg when the copy fails', async () => {
    a.bytes.fill(5);
    const c = failing('c');
    const device = await world.map('0 256 mirror core 1 64 2 a 0 c 0');
    await expect.poll(() => healthOf(device.status()[0]!)).toBe('AS');
    c.fails = () => false;
    expect(device.status()[0]).toContain(' 0/4 ');
    expect(await world.read(device, 0, 512)).toEqual(block(5));
    expect(await world.write(device, 0, block(6))).toBe(0);
    expect(await world.read(device, 0, 512)).toEqual(block(6));
  });
});

describe('delay', () => {
  it('holds reads and writes back for their times, and sends them where they belong', async () => {
    const device = await world.map('0 8 delay a 0 1 b 8 60');
    const began = performance.now();
    expect(await world.write(device, 0, block(3))).toBe(0);
    expect(performance.now() - began).toBeGreaterThan(50);
    expect([a.bytes[0], b.bytes[8 * 512]]).toEqual([0, 3]);
    expect(device.table()).toEqual(['0 8 delay a 0 1 b 8 60']);

    const longer = await world.map('0 8 delay a 0 1 b 8 600000');
    const write = world.write(longer, 0, block(4));
    await world.read(longer, 0, 512);
    expect(longer.status()).toEqual(['0 8 delay 0 1 0']);
    expect(b.bytes[8 * 512]).toBe(3);
    await longer.suspend();
    expect(await write).toBe(0);
    expect(b.bytes[8 * 512]).toBe(4);
    await longer.resume();
  });

  it('lets all go when it is suspended', async () => {
    const device = await world.map('0 8 delay a 0 600000');
    const writes = [1, 2, 3].map((value) => world.write(device, 0, block(value)));
    await device.suspend();
    expect(await Promise.all(writes)).toEqual([0, 0, 0]);
    expect(a.bytes[0]).toBe(3);
    await device.resume();
  });
});

describe('flakey', () => {
  it('fails everything while it is down, and nothing while it is up', async () => {
    const device = await world.map('0 8 flakey a 0 0 1');
    for (const op of [READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES] as const) {
      expect(await world.run(device, op, 0, op === FLUSH ? 0 : 512)).toBe(ERRNO.EIO);
    }
    const well = await world.map('0 8 flakey a 0 1 0');
    expect(await world.write(well, 0, block(1))).toBe(0);
    expect([...device.table(), ...device.status()]).toEqual(['0 8 flakey a 0 0 1 0 ', '0 8 flakey ']);
  });

  it('goes down after its up time', async () => {
    const device = await world.map('0 8 flakey a 0 1 3600');
    expect(await world.write(device, 0, block(1))).toBe(0);
    // The reactor's clock moves when its loop turns.
    await completed((completion) => void world.reactor.timer(1010, completion));
    expect(await world.write(device, 0, block(1))).toBe(ERRNO.EIO);
  });

  it('drops writes', async () => {
    a.bytes.fill(1);
    const device = await world.map('0 8 flakey a 0 0 1 1 drop_writes');
    expect(await world.write(device, 0, block(2))).toBe(0);
    expect(await world.run(device, WRITE_ZEROES, 0, 512)).toBe(0);
    expect(await world.read(device, 0, 512)).toEqual(block(1));
  });

  it('fails reads or writes alone', async () => {
    const reads = await world.map('0 8 flakey a 0 0 1 1 error_reads');
    expect([await world.write(reads, 0, block(2)), await world.read(reads, 0, 512)]).toEqual([0, ERRNO.EIO]);
    const writes = await world.map('0 8 flakey a 0 0 1 1 error_writes');
    expect(await world.write(writes, 0, block(3))).toBe(ERRNO.EIO);
    expect(await world.read(writes, 0, 512)).toEqual(block(2));
  });

  it('corrupts a byte of reads, or of writes without touching their data', async () => {
    const wrong = block(1, 2);
    wrong[599] = 0xee;
    const reads = await world.map('0 8 flakey a 0 0 1 5 corrupt_bio_byte 600 r 238 0');
    a.bytes.fill(1);
    expect(await world.read(reads, 0, 1024)).toEqual(wrong);
    expect(await world.read(reads, 0, 512)).toEqual(block(1));

    const writes = await world.map('0 8 flakey b 0 0 1 5 corrupt_bio_byte 600 w 238 0');
    const at = world.reactor.arena.allocate(1024);
    world.reactor.arena.bytes.fill(1, at, at + 1024);
    const write = (offset: number): Promise<number> =>
      runBio(world.pool, writes, { op: WRITE, offset, length: 1024, at });
    expect(await Promise.all([write(0), write(1024)])).toEqual([0, 0]);
    expect(world.reactor.arena.bytes[at + 599]).toBe(1);
    world.reactor.arena.release(at);
    expect(Buffer.from(b.bytes.subarray(0, 1024)).equals(wrong)).toBe(true);
    expect(Buffer.from(b.bytes.subarray(1024, 2048)).equals(wrong)).toBe(true);
    expect(writes.table()).toEqual(['0 8 flakey b 0 0 1 5 corrupt_bio_byte 600 w 238 0 ']);
  });
});

describe('dust', () => {
  it('fails reads of bad blocks once enabled, until they are written', async () => {
    const device = await world.map('0 64 dust a 8 1024');
    const tell = (words: string): string => device.message(0, words.split(' '));
    expect(tell('addbadblock 10')).toBe('');
    expect(tell('addbadblock 12 2')).toBe('');
    expect(() => tell('addbadblock 10')).toThrow(/block 10 already in badblocklist/);
    expect(() => tell('removebadblock 11')).toThrow(/block 11 not found/);
    expect(() => tell('addbadblock 128')).toThrow(/want a number below 128/);
    expect(() => tell('addbadblock')).toThrow(/unrecognized message/);
    expect(device.status()).toEqual(['0 64 dust a bypass verbose']);
    expect(await world.read(device, 0, 64 * 512)).toBeInstanceOf(Buffer);
    tell('enable');
    tell('quiet');
    expect(device.status()).toEqual(['0 64 dust a fail_read_on_bad_block quiet']);
    // Block 10 of the device: bytes 10240 to 11264, in the target 6144 to 7168.
    expect(await world.read(device, 6144 - 512, 512)).toBeInstanceOf(Buffer);
    expect(await world.read(device, 6144 - 512, 1024)).toBe(ERRNO.EIO);
    expect(await world.read(device, 7168 - 512, 512)).toBe(ERRNO.EIO);
    expect(await world.read(device, 7168, 512)).toBeInstanceOf(Buffer);
    expect(tell('queryblock 10')).toBe('dust_query_block: block 10 found in badblocklist');
    expect(await world.write(device, 6144, block(1))).toBe(0);
    expect(tell('queryblock 10')).toBe('dust_query_block: block 10 not found in badblocklist');
    expect(await world.read(device, 6144, 512)).toEqual(block(1));
    const writes = [];
    for (let i = 0; i < 3; i++) writes.push(await world.write(device, 8192, block(1)));
    expect(writes).toEqual([ERRNO.EIO, ERRNO.EIO, 0]);
    expect(tell('countbadblocks')).toBe('countbadblocks: 0 badblock(s) found');
    tell('addbadblock 3');
    expect(tell('listbadblocks')).toBe('3');
    expect([tell('clearbadblocks'), tell('clearbadblocks')]).toEqual([
      'dust_clear_badblocks: badblocks cleared',
      'dust_clear_badblocks: no badblocks found',
    ]);
    expect(device.table()).toEqual(['0 64 dust a 8 1024']);
  });
});
