/** Restores to kernel block devices: loop devices stand for real ones. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { restore } from '../../src/backup/restore.ts';
import type { RestoreResult } from '../../src/backup/restore.ts';
import { MIB } from '../../src/util/units.ts';
import { requirePrograms, requireRoot } from '../requirements.ts';
import { BackupWorld, DISK_BYTES } from './world.ts';

let world: BackupWorld;
const loops: string[] = [];
beforeEach(async () => void (world = await BackupWorld.open(4)));
afterEach(async () => {
  for (const loop of loops.splice(0)) execFileSync('losetup', ['-d', loop]);
  await world.close();
});

/** A loop device over a file of that many bytes of 0xaa. */
function loopDevice(bytes: number): { device: string; file: string } {
  const file = world.newPath();
  fs.writeFileSync(file, Buffer.alloc(bytes, 0xaa));
  const device = execFileSync('losetup', ['--find', '--show', file], { encoding: 'utf8' }).trim();
  loops.push(device);
  return { device, file };
}

function restoreTo(to: string, overwrite: boolean): Promise<RestoreResult> {
  return restore({ directory: world.repository, disk: 'vda', to, overwrite, reactor: world.reactor, pool: world.pool });
}

test('zeros are written too, what lies behind the disk is left, and data is not overwritten unasked', async (context) => {
  requireRoot(context);
  requirePrograms(context, 'losetup');
  const { point } = await world.backUp();
  const { device, file } = loopDevice(12 * MIB);
  await expect(restoreTo(device, false)).rejects.toMatchObject({
    code: 'EEXIST',
    message: expect.stringContaining('holds data'),
  });
  await restoreTo(device, true);
  const written = fs.readFileSync(file);
  expect(Buffer.compare(written.subarray(0, DISK_BYTES), world.contents.get(point.id)!)).toBe(0);
  expect(written.subarray(DISK_BYTES).every((byte) => byte === 0xaa)).toBe(true);
});

test('a device that is too small is refused and not touched', async (context) => {
  requireRoot(context);
  requirePrograms(context, 'losetup');
  await world.backUp();
  const { device, file } = loopDevice(4 * MIB);
  await expect(restoreTo(device, true)).rejects.toMatchObject({
    code: 'EINVAL',
    message: expect.stringContaining('4194304 bytes'),
  });
  expect(fs.readFileSync(file).every((byte) => byte === 0xaa)).toBe(true);
});

test('a device is not touched when the backup is damaged', async (context) => {
  requireRoot(context);
  requirePrograms(context, 'losetup');
  const { point } = await world.backUp();
  world.damage(point.id, 300_000);
  const { device, file } = loopDevice(12 * MIB);
  await expect(restoreTo(device, true)).rejects.toMatchObject({ code: 'EBADMSG' });
  expect(fs.readFileSync(file).every((byte) => byte === 0xaa)).toBe(true);
});
