/** Live attach over /dev/ublkbN: mounted volumes under load go onto the daemon and back, also when it is killed. */

import fs from 'node:fs';
import { afterEach, beforeAll, expect, test, vi } from 'vitest';
import { EXT4, LiveWorld, run, XFS } from '../live-world.ts';

const SECTORS = 640 * 1024;
/** Two targets, the second from its own place. */
const TABLE = `0 ${SECTORS - 4096} linear 1:0 2048\n${SECTORS - 4096} 4096 linear 1:16 8192\n`;
/** Emulated, a program of Node takes seconds to start. */
const LIMIT_MS = 600_000;
vi.setConfig({ testTimeout: LIMIT_MS, hookTimeout: LIMIT_MS });

let world: LiveWorld | undefined;

beforeAll(() => {
  for (const name of ['ublk_drv', 'dm-mod', 'xfs']) run('modprobe', name);
  if (!fs.existsSync('/dev/ram0')) run('modprobe', 'brd', 'rd_nr=4', `rd_size=${320 * 1024}`);
});
afterEach(async () => {
  await world?.dispose();
  world = undefined;
});

test.each([
  { kind: 'ext4', fileSystem: EXT4 },
  { kind: 'xfs', fileSystem: XFS },
])('a mounted $kind under load goes there and back, and outlives daemons that are killed', async ({ fileSystem }) => {
  const here = new LiveWorld('vol', TABLE, fileSystem);
  world = here;
  await here.start();
  const load = here.load();
  const restart = async (): Promise<void> => {
    await here.daemon.stop('SIGKILL');
    await here.start();
  };
  const { kernelDevice } = await here.attach();
  expect(kernelDevice).toMatchObject({ via: 'ublk' });
  const ours = here.table();
  expect(ours).toBe(`0 ${SECTORS} linear ${run('lsblk', '-dno', 'MAJ:MIN', kernelDevice!.path!).trim()} 0\n`);
  await restart();
  expect(here.table()).toBe(ours);
  for (const point of [
    { command: 'load', when: 'before' },
    { command: 'resume', when: 'after' },
  ] as const) {
    here.dieAt(point);
    await expect(here.client.detach('vol')).rejects.toThrow();
    expect(here.hasDied).toBe(true);
    expect(here.isSuspended()).toBe(false);
    await restart();
    expect(here.table()).toBe(TABLE);
    await here.attach();
  }
  await here.client.detach('vol');
  expect(here.table()).toBe(TABLE);
  expect(here.mappings()).toEqual(['vol']);
  await load.end();
  here.check();
});
