/** Every block device keeps the device contract; files do so on both drivers. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { CONTRACT_SIZE, describeDevice } from '../../test/contracts/device.ts';
import type { DeviceUnderTest } from '../../test/contracts/device.ts';
import { openDescriptors } from '../../test/contracts/reactor-bench.ts';
import { chooseDriver, openReactor } from '../io/open.ts';
import type { DriverName } from '../io/open.ts';
import type { Reactor } from '../io/reactor.ts';
import { Prng } from '../util/prng.ts';
import { MIB } from '../util/units.ts';
import { BioPool } from './bio.ts';
import type { BlockDevice } from './device.ts';
import { Disk } from './disk.ts';
import { MemoryDevice } from './memory-device.ts';
import { openDevice } from './open.ts';
import { OverlayDevice } from './overlay-device.ts';
import { openOverlayStorage } from './overlay-storage.ts';

const ODD_SIZE = CONTRACT_SIZE - 512;

interface Bench {
  readonly reactor: Reactor;
  readonly pool: BioPool;
  readonly dir: string;
}

/** Opens the device on a fresh reactor and directory; at the end nothing of either may be left. */
function opener(
  driver: DriverName,
  open: (bench: Bench) => Promise<BlockDevice>,
  content?: Uint8Array,
  dirOf = os.tmpdir(),
) {
  return async (): Promise<DeviceUnderTest> => {
    const descriptors = openDescriptors();
    const reactor = await openReactor({ driver, arenaBytes: 16 * MIB, cooperative: true });
    const pool = new BioPool();
    const dir = fs.mkdtempSync(path.join(dirOf, 'blksnap-device-'));
    const device = await open({ reactor, pool, dir });
    return {
      device,
      reactor,
      pool,
      ...(content === undefined ? {} : { content }),
      async finish() {
        expect(reactor.inFlight).toBe(0);
        expect(reactor.arena.lentBytes).toBe(0);
        await reactor.close();
        fs.rmSync(dir, { recursive: true });
        await expect.poll(openDescriptors, { interval: 5 }).toBeLessThanOrEqual(descriptors);
      },
    };
  };
}

async function openFile(bench: Bench, size: number, direct = false): Promise<BlockDevice> {
  const file = path.join(bench.dir, 'disk');
  fs.writeFileSync(file, '');
  fs.truncateSync(file, size);
  return openDevice(file, { reactor: bench.reactor, direct });
}

function randomContent(size: number): Uint8Array {
  const content = new Uint8Array(size);
  new Prng(11).fill(content.subarray(0, size / 2)); // the rest is zero
  return content;
}

const content = randomContent(ODD_SIZE);

async function openOverlay(bench: Bench, inMemory: boolean): Promise<BlockDevice> {
  const { reactor, pool, dir } = bench;
  const base = new MemoryDevice('base', ODD_SIZE, reactor.arena, { readOnly: true });
  base.bytes.set(content);
  const storage = inMemory
    ? new MemoryDevice('storage', ODD_SIZE, reactor.arena)
    : openOverlayStorage(dir, ODD_SIZE, reactor);
  return new OverlayDevice('overlay', { base, storage, pool, arena: reactor.arena });
}

const { driver: best, reason } = await chooseDriver();

describeDevice(
  'memory',
  opener(best, async ({ reactor }) => new MemoryDevice('memory', ODD_SIZE, reactor.arena)),
);
describeDevice(
  'disk over memory',
  opener(best, async ({ reactor }) => new Disk('d', new MemoryDevice('m', ODD_SIZE, reactor.arena))),
);
describeDevice(
  'overlay over memory',
  opener(best, (bench) => openOverlay(bench, true), content),
);

for (const driver of ['uring', 'portable'] as const) {
  const missing = driver === 'uring' ? reason : '';
  describeDevice(
    `file, buffered, ${driver}`,
    opener(driver, (bench) => openFile(bench, ODD_SIZE)),
    missing,
  );
  describeDevice(
    `file, direct, ${driver}`,
    opener(driver, (bench) => openFile(bench, CONTRACT_SIZE, true)),
    missing,
  );
  describeDevice(
    `overlay over a file, ${driver}`,
    opener(driver, (bench) => openOverlay(bench, false), content),
    missing,
  );
}

// tmpfs punches holes but cannot zero ranges.
const shm = fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir();
describeDevice(
  'file on tmpfs',
  opener(best, (bench) => openFile(bench, ODD_SIZE), undefined, shm),
  shm === '/dev/shm' ? '' : 'needs tmpfs on /dev/shm',
);

const noLoop = (() => {
  if (process.getuid?.() !== 0) return 'needs root';
  try {
    execFileSync('losetup', ['-f'], { stdio: 'ignore' });
    return '';
  } catch {
    return 'needs loop devices';
  }
})();

async function openLoop({ reactor, dir }: Bench, direct: boolean): Promise<BlockDevice> {
  const file = path.join(dir, 'image');
  fs.writeFileSync(file, '');
  fs.truncateSync(file, CONTRACT_SIZE);
  const loop = execFileSync('losetup', ['-f', '--show', file], { encoding: 'utf8' }).trim();
  const device = await openDevice(loop, { reactor, direct });
  const close = device.close.bind(device);
  let closed = false;
  device.close = async () => {
    if (closed) return;
    closed = true;
    await close();
    execFileSync('losetup', ['-d', loop]);
  };
  return device;
}

describeDevice(
  'kernel device',
  opener(best, (bench) => openLoop(bench, false)),
  noLoop,
);
describeDevice(
  'kernel device, direct',
  opener(best, (bench) => openLoop(bench, true)),
  noLoop,
);

describe('a kernel device', () => {
  it('is opened exclusively', async (context) => {
    context.skip(noLoop !== '', noLoop);
    const test = await opener(best, (bench) => openLoop(bench, false))();
    const options = { reactor: test.reactor };
    const words = expect.stringContaining('in use') as string;
    await expect(openDevice(test.device.name, options)).rejects.toMatchObject({ code: 'EBUSY', message: words });
    expect(test.device.size).toBe(CONTRACT_SIZE);
    await test.device.close();
    await test.finish();
  });

  it('that is read-only is refused for writing', async (context) => {
    context.skip(noLoop !== '', noLoop);
    const test = await opener(best, (bench) => openLoop(bench, false))();
    const { name } = test.device;
    await test.device.close();
    await test.finish();
    // Detached: no size, no medium.
    await expect(openDevice(name, { reactor: test.reactor })).rejects.toMatchObject({ name: 'BlksnapError' });
  });
});
