/** Change history of a kernel device, from one time that it is attached to the next: it goes on when nobody else wrote to
 *  the device, and only where the kernel counts writes, so that it can be known. */

import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Client } from '../../../src/api/client.ts';
import { CbtMap } from '../../../src/blksnap/cbt-map.ts';
import { MIB } from '../../../src/util/units.ts';
import { Machine, RAM_DISK_BYTES, sh } from '../machine.ts';
import { QuickDaemon } from '../quick-daemon.ts';

const SIZE = 16 * MIB;
let daemon: QuickDaemon;
/** A loop device: the kernel counts what is written to it. */
let loop: string;

beforeEach(async () => {
  daemon = new QuickDaemon();
  const file = daemon.path('loop.img');
  fs.writeFileSync(file, Buffer.alloc(SIZE, 1));
  await sh('modprobe', 'loop');
  loop = (await sh('losetup', '--find', '--show', file)).trim();
});
afterEach(async () => {
  await daemon.dispose();
  await sh('losetup', '--detach', loop);
});

/** Writes one block. */
function write(device: string): Promise<string> {
  return sh(
    'dd',
    'if=/dev/urandom',
    `of=${device}`,
    'bs=64k',
    'count=1',
    'oflag=direct',
    'conv=notrunc',
    'status=none',
  );
}

function setCounting(device: string, on: boolean): void {
  fs.writeFileSync(`/sys/block/${path.basename(device)}/queue/iostats`, on ? '1' : '0');
}

test('goes on over a restart of the daemon, whether the device was written through it or not', async () => {
  const machine = await Machine.startWith(daemon);
  const client = new Client({ dir: daemon.state });
  const device = await machine.attach(loop, '--name', 'data');
  const before = await client.cbt('data');
  for (const writes of [true, false]) {
    if (writes) await write(device);
    expect(await daemon.stop()).toBe(0);
    await daemon.start();
    expect((await client.cbt('data')).generationId).toBe(before.generationId);
  }
});

/** Opens a device's map and closes it in order, with a write in between if wanted, and once more after `meanwhile`: why
 *  history did not go on, or ''. */
async function doubtAfter(
  device: string,
  meanwhile: () => unknown,
  { writes = true }: { readonly writes?: boolean } = {},
): Promise<string> {
  const deviceSize = device === loop ? SIZE : RAM_DISK_BYTES;
  const options = { path: daemon.path('map'), deviceSize, originPath: device };
  fs.rmSync(options.path, { force: true });
  const map = CbtMap.open(options);
  if (writes) {
    map.mark(0, 65_536, 1);
    await write(device);
  }
  map.close();
  await meanwhile();
  const after = CbtMap.open(options);
  after.close();
  return after.reason;
}

const nothing = (): void => {};
const DISCARD = ['blkdiscard', '--length', '65536'] as const;

test('ends when somebody else writes or discards', async () => {
  expect(await doubtAfter(loop, nothing)).toBe('');
  for (const meanwhile of [() => write(loop), () => sh(...DISCARD, '--zeroout', loop), () => sh(...DISCARD, loop)])
    expect(await doubtAfter(loop, meanwhile)).toMatch(/written while it was not attached/);
});

test('ends where the kernel is told not to count, or does not though it says so', async () => {
  const uncounted = /does not count what is written/;
  expect(await doubtAfter(loop, () => setCounting(loop, false))).toMatch(uncounted);
  expect(await doubtAfter(loop, nothing)).toMatch(uncounted);
  expect(await doubtAfter(loop, nothing, { writes: false })).toMatch(uncounted);
  expect(await doubtAfter(loop, () => write(loop))).toMatch(uncounted);
  if (!fs.existsSync('/dev/ram0')) await sh('modprobe', 'brd', 'rd_nr=1', `rd_size=${RAM_DISK_BYTES / 1024}`);
  setCounting('/dev/ram0', true);
  expect(await doubtAfter('/dev/ram0', () => write('/dev/ram0'))).toMatch(uncounted);
});
