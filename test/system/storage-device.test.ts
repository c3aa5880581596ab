/** A block device as storage, by a name of its own: without udev, or in a container, nodes are made anywhere. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect, test } from 'vitest';
import { Embedded } from '../../src/index.ts';
import { MIB } from '../../src/util/units.ts';
import { requireRoot } from '../requirements.ts';

test('a device is storage by whatever name it has', async (context) => {
  requireRoot(context);
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-node-'));
  for (const name of ['backing', 'origin']) {
    fs.writeFileSync(path.join(dir, name), '');
    fs.truncateSync(path.join(dir, name), 32 * MIB);
  }
  let loop: string;
  try {
    loop = execFileSync('losetup', ['--find', '--show', path.join(dir, 'backing')], { encoding: 'utf8' }).trim();
  } catch {
    fs.rmSync(dir, { recursive: true });
    return context.skip('needs loop devices');
  }
  const embedded = await Embedded.open();
  try {
    const node = path.join(dir, 'store');
    const { rdev } = fs.statSync(loop);
    execFileSync('mknod', [node, 'b', String((rdev >> 8) & 0xfff), String(rdev & 0xff)]);
    const disk = await embedded.openDisk(path.join(dir, 'origin'));
    await disk.write(0, Buffer.alloc(MIB, 1));
    const snapshot = await embedded.snapshot([disk], { storage: node });
    await disk.write(0, Buffer.alloc(MIB, 2));
    expect((await snapshot.image(disk).read(0, MIB)).every((byte) => byte === 1)).toBe(true);
    await snapshot.destroy();
  } finally {
    await embedded.close();
    execFileSync('losetup', ['-d', loop]);
    fs.rmSync(dir, { recursive: true });
  }
});
