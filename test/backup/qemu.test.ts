/** Restore points are what qemu-img says they are: sound images, equal to the snapshots they came from. */

import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { prune } from '../../src/backup/prune.ts';
import { qemuImg } from '../qcow2-images.ts';
import { requirePrograms } from '../requirements.ts';
import { BackupWorld, DISK_BYTES } from './world.ts';

let world: BackupWorld;
beforeEach(async () => void (world = await BackupWorld.open(3)));
afterEach(() => world.close());

/** The size that qemu-img sees. Throws unless `check` finds neither errors nor leaks, and `compare` the same content. */
function checkedSize(point: string): number {
  const file = path.join(world.diskPath, `${point}.qcow2`);
  qemuImg('check', '-q', '-f', 'qcow2', file);
  const raw = world.newPath();
  fs.writeFileSync(raw, world.contents.get(point)!);
  qemuImg('compare', '-q', '-f', 'qcow2', '-F', 'raw', file, raw);
  const info = JSON.parse(qemuImg('info', '--output=json', file)) as { 'virtual-size': number };
  return info['virtual-size'];
}

test('every point passes check and compare, also after a prune', async (context) => {
  requirePrograms(context, 'qemu-img');
  const ids: string[] = [];
  for (const mode of ['auto', 'auto', 'differential', 'differential', 'auto', 'auto'] as const) {
    ids.push((await world.backUp({ mode })).point.id);
    world.scribble(6);
  }
  for (const id of ids) expect(checkedSize(id)).toBe(DISK_BYTES);
  await prune({ directory: world.repository, disk: 'vda', keepLast: 4, reactor: world.reactor, pool: world.pool });
  for (const id of ids.slice(2)) expect(checkedSize(id)).toBe(DISK_BYTES);
});
