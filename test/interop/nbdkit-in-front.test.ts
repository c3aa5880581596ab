/** nbdkit's nbd plugin in front of our server, with filters of nbdkit's between it and a client: what a chain of
 *  servers asks of ours. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { MemoryDevice } from '../../src/block/memory-device.ts';
import { chooseDriver } from '../../src/io/open.ts';
import type { DriverName } from '../../src/io/open.ts';
import { Prng } from '../../src/util/prng.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { NbdWorld } from '../nbd/world.ts';
import { requirePrograms, requirePythonNbd } from '../requirements.ts';

const SIZE = 8 * MIB;
const drivers: DriverName[] = (await chooseDriver()).driver === 'uring' ? ['uring', 'portable'] : ['portable'];

describe.each(drivers)('nbdkit in front of our server, %s driver', (driver) => {
  let world: NbdWorld;
  let device: MemoryDevice;
  let start: Buffer;

  beforeEach(async () => {
    world = await NbdWorld.open({ driver, arenaBytes: 32 * MIB });
    device = world.addMemory('disk', SIZE);
    new Prng(11).fill(device.bytes);
    start = Buffer.from(device.bytes);
  });
  afterEach(async () => await world.close());

  /** Runs a shell command with nbdkit in front; it finds nbdkit's address in $uri. */
  const front = async (filters: readonly string[], command: string): Promise<string> => {
    const [names, parameters] = [
      filters.filter((one) => one.startsWith('--')),
      filters.filter((one) => !one.startsWith('--')),
    ];
    const args = ['-U', '-', ...names, 'nbd', `uri=${world.uri('disk')}`, ...parameters, '--run', command];
    return (await promisify(execFile)('nbdkit', args)).stdout;
  };

  const chains: ReadonlyArray<readonly string[]> = [
    [],
    ['--filter=blocksize', 'minblock=512'],
    ['--filter=cache', 'cache=writethrough'],
    ['--filter=readahead'],
    ['--filter=retry'],
    ['--filter=fua', 'fuamode=force'],
    ['--filter=noparallel', 'serialize=all-requests'],
    ['--filter=offset', 'offset=0', `range=${SIZE}`],
  ];

  for (const filters of chains) {
    it(`data goes both ways: ${filters.join(' ')}`, async (context) => {
      requirePrograms(context, 'nbdkit', 'nbdcopy', 'qemu-io');
      const image = path.join(world.dir, 'image');
      const writes = '-c "write -P 7 64k 1M" -c "write -f -P 8 4M 4k" -c "write -z 2M 512k" -c flush';
      await front(filters, `nbdcopy "$uri" ${image} && qemu-io -f raw ${writes} "$uri"`);
      expect(fs.readFileSync(image).equals(start)).toBe(true);
      const wanted = Buffer.from(start);
      wanted.fill(7, 64 * KIB, 64 * KIB + MIB);
      wanted.fill(8, 4 * MIB, 4 * MIB + 4 * KIB);
      wanted.fill(0, 2 * MIB, 2 * MIB + 512 * KIB);
      expect(Buffer.compare(device.bytes, wanted)).toBe(0);
    });
  }

  it('copy on write stays in nbdkit', async (context) => {
    requirePrograms(context, 'nbdkit', 'qemu-io');
    await front(['--filter=cow'], 'qemu-io -f raw -c "write -P 7 0 1M" -c "read -P 7 0 1M" "$uri"');
    expect(start.equals(device.bytes)).toBe(true);
  });

  it('the map is the same through nbdkit', async (context) => {
    requirePrograms(context, 'nbdkit', 'nbdinfo');
    device.bytes.fill(0, MIB, 3 * MIB);
    const through = await front([], 'nbdinfo --map --json "$uri"');
    const { stdout } = await promisify(execFile)('nbdinfo', ['--map', '--json', world.uri('disk')]);
    const extents = JSON.parse(through) as ReadonlyArray<{ readonly offset: number; readonly type: number }>;
    expect(extents).toEqual(JSON.parse(stdout));
    expect(extents.map(({ offset, type }) => [offset, type])).toEqual([
      [0, 0],
      [MIB, 2],
      [3 * MIB, 0],
    ]);
  });

  it('serves single bytes through the blocksize filter', async (context) => {
    requirePrograms(context, 'nbdkit');
    requirePythonNbd(context);
    const script = path.join(world.dir, 'bytes.py');
    const commands = 'h.pwrite(b"x" * 700, 1001); h.flush(); assert h.pread(700, 1001) == b"x" * 700';
    fs.writeFileSync(script, `import nbd, sys; h = nbd.NBD(); h.connect_uri(sys.argv[1]); ${commands}`);
    await front(['--filter=blocksize', 'minblock=512'], `/usr/bin/python3 ${script} "$uri"`);
    const wanted = Buffer.from(start);
    wanted.fill('x', 1001, 1701);
    expect(Buffer.compare(device.bytes, wanted)).toBe(0);
  });
});
