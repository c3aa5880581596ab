/** Other people's NBD clients against our server, on both drivers. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { openDevice } from '../../src/block/open.ts';
import { chooseDriver } from '../../src/io/open.ts';
import type { DriverName } from '../../src/io/open.ts';
import { Prng } from '../../src/util/prng.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { NbdWorld } from '../nbd/world.ts';
import { requirePrograms, requirePythonNbd } from '../requirements.ts';

const SIZE = 16 * MIB;
/** Of a program that hangs: it is to end before the test's own limit leaves it behind. */
const HANG_MS = 240_000;
const drivers: DriverName[] = (await chooseDriver()).driver === 'uring' ? ['uring', 'portable'] : ['portable'];

/** The program's output; rejects with all that it said when it fails. */
async function run(program: string, ...args: readonly string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(program, args, { timeout: HANG_MS, maxBuffer: 64 * MIB });
  return stdout;
}

function randomBytes(seed: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  const prng = new Prng(seed);
  prng.fill(bytes.subarray(0));
  return bytes;
}

interface NbdInfo {
  readonly exports: ReadonlyArray<Record<string, unknown>>;
}

describe.each(drivers)('clients of our server, %s driver', (driver) => {
  let world: NbdWorld;
  let image: string;
  beforeEach(async () => {
    world = await NbdWorld.open({ driver, arenaBytes: 64 * MIB });
    image = path.join(world.dir, 'disk.img');
    const fd = fs.openSync(image, 'w');
    fs.ftruncateSync(fd, SIZE);
    const data = randomBytes(1, MIB);
    fs.writeSync(fd, data, 0, MIB, 4 * MIB);
    fs.closeSync(fd);
    world.add('disk', await openDevice(image, { reactor: world.reactor }));
  });
  afterEach(async () => {
    await world.close();
  });

  it('nbdinfo sees the export, the list and the map', async (context) => {
    requirePrograms(context, 'nbdinfo');
    const info = JSON.parse(await run('nbdinfo', '--json', world.uri('disk'))) as NbdInfo;
    expect(info.exports[0]).toMatchObject({
      'export-name': 'disk',
      'export-size': SIZE,
      contexts: ['base:allocation'],
      is_read_only: false,
      can_cache: true,
      can_df: true,
      can_flush: true,
      can_fua: true,
      can_multi_conn: true,
      can_trim: true,
      can_zero: true,
      block_size_minimum: 512,
    });
    world.addMemory('second', MIB, { readOnly: true });
    const list = JSON.parse(await run('nbdinfo', '--list', '--json', world.uri())) as NbdInfo;
    expect(list.exports.map((each) => each['export-name'])).toEqual(['disk', 'second']);
    expect(list.exports[1]).toMatchObject({ is_read_only: true, can_trim: false, description: 'the device second' });
    const map = JSON.parse(await run('nbdinfo', '--map', '--json', world.uri('disk'))) as Array<{
      offset: number;
      length: number;
      type: number;
    }>;
    expect(map).toEqual([
      { offset: 0, length: 4 * MIB, type: 3, description: 'hole,zero' },
      { offset: 4 * MIB, length: MIB, type: 0, description: 'data' },
      { offset: 5 * MIB, length: SIZE - 5 * MIB, type: 3, description: 'hole,zero' },
    ]);
    await expect(run('nbdinfo', world.uri('none'))).rejects.toThrow(/none/);
  });

  it('nbdinfo maps a dirty bitmap', async (context) => {
    requirePrograms(context, 'nbdinfo');
    const { device } = world.exports.get('disk')!;
    const blockStatus = async (offset: number, length: number) => {
      const dirtyEnd = 128 * KIB;
      const runs = offset < dirtyEnd ? [{ length: Math.min(length, dirtyEnd - offset), flags: 1 }] : [];
      return offset + length > dirtyEnd
        ? [...runs, { length: offset + length - Math.max(offset, dirtyEnd), flags: 0 }]
        : runs;
    };
    world.add('image', device, [{ name: 'qemu:dirty-bitmap:b0', blockStatus }]);
    const map = JSON.parse(
      await run('nbdinfo', '--map=qemu:dirty-bitmap:b0', '--json', world.uri('image')),
    ) as unknown[];
    expect(map).toMatchObject([
      { offset: 0, length: 128 * KIB, type: 1 },
      { offset: 128 * KIB, length: SIZE - 128 * KIB, type: 0 },
    ]);
    world.exports.delete('image');
  });

  it('nbdcopy copies out of it and into it', async (context) => {
    requirePrograms(context, 'nbdcopy');
    const copy = path.join(world.dir, 'copy.img');
    await run('nbdcopy', world.uri('disk'), copy);
    expect(Buffer.compare(fs.readFileSync(copy), fs.readFileSync(image))).toBe(0);
    const other = path.join(world.dir, 'other.img');
    const data = randomBytes(2, SIZE);
    data.fill(0, 3 * MIB, 7 * MIB);
    fs.writeFileSync(other, data);
    await run('nbdcopy', '--flush', other, world.uri('disk'));
    expect(Buffer.compare(fs.readFileSync(image), data)).toBe(0);
  });

  it('qemu-img converts, compares and maps', async (context) => {
    requirePrograms(context, 'qemu-img');
    const copy = path.join(world.dir, 'copy.qcow2');
    await run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', world.uri('disk'), copy);
    expect(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', world.uri('disk'), copy)).toContain(
      'identical',
    );
    await run('qemu-img', 'convert', '-n', '-f', 'qcow2', '-O', 'raw', copy, world.uri('disk'));
    expect(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', world.uri('disk'), copy)).toContain(
      'identical',
    );
    const map = JSON.parse(await run('qemu-img', 'map', '-f', 'raw', '--output=json', world.uri('disk'))) as Array<{
      start: number;
      data: boolean;
      zero: boolean;
    }>;
    expect(map.find(({ start }) => start === 4 * MIB)).toMatchObject({ data: true, zero: false });
    expect(map[0]).toMatchObject({ data: false, zero: true });
  });

  it('qemu-io writes patterns and finds them again', async (context) => {
    requirePrograms(context, 'qemu-io');
    const commands = [
      'write -P 1 0 64k',
      'write -P 2 512 512',
      'read -P 1 0 512',
      'read -P 2 512 512',
      'read -P 1 1k 63k',
      'write -f -P 3 1M 5M',
      'read -P 3 1M 5M',
      'write -z 2M 64k',
      'read -P 0 2M 64k',
      'write -z -u 3M 1M',
      'read -P 0 3M 1M',
      'discard 5M 1M',
      'flush',
      'aio_write -P 7 8M 1M',
      'aio_write -P 8 9M 1M',
      'aio_flush',
      'read -P 7 8M 1M',
      'read -P 8 9M 1M',
      'write -P 9 16776704 512',
      'read -P 9 16776704 512',
    ];
    const output = await run(
      'qemu-io',
      '-f',
      'raw',
      ...commands.flatMap((command) => ['-c', command]),
      world.uri('disk'),
    );
    expect(output).not.toMatch(/fail|error/i);
    const bytes = fs.readFileSync(image);
    expect([bytes[511], bytes[512], bytes[1024], bytes[9 * MIB], bytes[SIZE - 1]]).toEqual([1, 2, 1, 8, 9]);
  });

  it('fio verifies what it wrote', async (context) => {
    requirePrograms(context, 'fio');
    const args = [
      '--name=verify',
      '--ioengine=nbd',
      `--uri=${world.uri('disk')}`,
      '--rw=randwrite',
      '--bsrange=512-128k',
      '--bs_unaligned=0',
    ];
    await run(
      'fio',
      ...args,
      '--iodepth=16',
      `--size=${SIZE}`,
      '--verify=crc32c',
      '--verify_fatal=1',
      '--verify_state_save=0',
      '--randseed=7',
    );
  });

  it('nbd-client lists the exports', async (context) => {
    requirePrograms(context, 'nbd-client');
    const listener = await world.server.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 });
    const { address } = listener;
    const port = address.kind === 'tcp' ? address.port : 0;
    const output = await run('nbd-client', '-l', '127.0.0.1', String(port));
    expect(output).toMatch(/^disk/m);
  });

  it('libnbd tries every command, in every style, and with its own checks off', async (context) => {
    requirePythonNbd(context);
    const script = path.join(import.meta.dirname, 'nbd-commands.py');
    expect(await run('/usr/bin/python3', script, world.uri('disk'))).toContain('all good');
  });
});
