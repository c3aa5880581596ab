/** A snapshot whose storage lies in the same small file system as its sparse origin leaves it room. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect, test } from 'vitest';
import { Embedded } from '../../src/blksnap/embedded.ts';
import { WRITE, runBio } from '../../src/block/bio.ts';
import { MIB } from '../../src/util/units.ts';
import { requirePrograms, requireRoot } from '../requirements.ts';

test('storage is not reserved at the expense of the origin', async (context) => {
  requireRoot(context);
  requirePrograms(context, 'mkfs.ext4');
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-small-'));
  const place = path.join(dir, 'mounted');
  fs.mkdirSync(place);
  fs.writeFileSync(path.join(dir, 'image'), '');
  fs.truncateSync(path.join(dir, 'image'), 64 * MIB);
  execFileSync('mkfs.ext4', ['-q', path.join(dir, 'image')]);
  try {
    execFileSync('mount', ['-o', 'loop', path.join(dir, 'image'), place], { stdio: 'pipe' });
  } catch {
    fs.rmSync(dir, { recursive: true });
    return context.skip('needs loop devices');
  }
  try {
    const origin = path.join(place, 'origin');
    fs.writeFileSync(origin, '');
    fs.truncateSync(origin, 32 * MIB);
    const embedded = await Embedded.open();
    const opened = await embedded.openDisk(origin);
    const snapshot = await embedded.snapshot([opened], { storage: place });
    const { reactor, pool } = embedded;
    const at = reactor.arena.allocate(MIB);
    reactor.arena.bytes.fill(7, at, at + MIB);
    for (let offset = 0; offset < 16 * MIB; offset += MIB)
      expect(await runBio(pool, opened.disk, { op: WRITE, offset, length: MIB, at })).toBe(0);
    reactor.arena.release(at);
    await snapshot.destroy();
    await embedded.close();
  } finally {
    execFileSync('umount', ['--lazy', place]);
    fs.rmSync(dir, { recursive: true });
  }
});
