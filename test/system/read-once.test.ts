/** A backup that owns its snapshot gives back what it has read, through the real daemon and NBD. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { SnapshotView, StatusView } from '../../src/api/client.ts';
import { requirePrograms } from '../requirements.ts';
import { DaemonUnderTest } from './daemon-under-test.ts';

const MIB = 1024 * 1024;
const SIZE = 64 * MIB;
let daemon: DaemonUnderTest;

beforeEach(async () => {
  daemon = new DaemonUnderTest();
  await daemon.start();
});
afterEach(() => daemon.dispose());

const released = async (): Promise<number> => (await daemon.json<StatusView>('status')).copies.releasedChunks;

test('full and incremental, both restored as they were', async () => {
  const file = await daemon.disk('vm', SIZE);
  await daemon.cli('backup', 'vm', '--to', daemon.path('backups'));
  expect(await released()).toBe(SIZE / 4096);
  await daemon.cli('backup', 'vm', '--to', daemon.path('backups'), '--limit', '1M');
  expect(await released()).toBe((2 * SIZE) / 4096);
  // While an older snapshot needs the old data of everything, all of it is kept.
  await daemon.cli('snapshot', 'create', 'vm', '--storage', ':memory:');
  await daemon.cli('backup', 'vm', '--to', daemon.path('backups'));
  expect(await released()).toBe((2 * SIZE) / 4096);
  await daemon.cli('restore', daemon.path('backups'), '--disk', 'vm', '--to', daemon.path('restored'));
  expect(fs.readFileSync(daemon.path('restored')).equals(fs.readFileSync(file))).toBe(true);
});

test('a snapshot that is named is read and left whole', async () => {
  const file = await daemon.disk('vm', SIZE);
  const before = fs.readFileSync(file);
  const { id } = await daemon.json<SnapshotView>('snapshot', 'create', 'vm');
  await daemon.cli('backup', 'vm', '--to', daemon.path('backups'), '--snapshot', id);
  expect(await released()).toBe(0);
  await daemon.cli('restore', daemon.path('backups'), '--disk', 'vm', '--to', daemon.path('restored'));
  expect(fs.readFileSync(daemon.path('restored')).equals(before)).toBe(true);
});

test("any client may say so: qemu-io's discard on the image to be read once", async (context) => {
  requirePrograms(context, 'qemu-io');
  await daemon.disk('vm', SIZE);
  const { images } = await daemon.json<SnapshotView>('snapshot', 'create', 'vm');
  const { readOnceUri, uri } = images[0]!;
  execFileSync('qemu-io', ['-f', 'raw', '-d', 'unmap', '-c', 'discard 8M 4M', readOnceUri]);
  expect(await released()).toBe(1024);
  const read = (from: string, offset: string): string =>
    execFileSync('sh', ['-c', `qemu-io -r -f raw -c 'read ${offset} 4k' '${from}' 2>&1 || true`], { encoding: 'utf8' });
  expect(read(uri, '8M')).toMatch(/Input\/output error/);
  expect(read(uri, '12M')).toMatch(/read 4096\/4096/);
});
