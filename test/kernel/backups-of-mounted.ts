/** Backups of a file system that is mounted on a kernel device and changes meanwhile restore to what its images showed. */

import fs from 'node:fs';
import path from 'node:path';
import { expect } from 'vitest';
import { MIB } from '../../src/util/units.ts';
import { sh } from './machine.ts';
import type { Machine } from './machine.ts';
import type { QuickDaemon } from './quick-daemon.ts';

interface Snapshot {
  readonly id: string;
  readonly images: ReadonlyArray<{ readonly kernelDevice: { readonly path: string } }>;
}

/** A backup, as `backup --json` tells of it. */
interface Made {
  readonly point: { readonly kind: 'full' | 'incremental' };
}

interface Mounted {
  readonly machine: Machine;
  readonly daemon: QuickDaemon;
  readonly via: 'nbd' | 'ublk';
  readonly mkfs: readonly string[];
  readonly size: number;
}

export async function expectBackupsOfMounted({ machine, daemon, via, mkfs, size }: Mounted): Promise<void> {
  const [file, target] = [daemon.path('saved.img'), daemon.path('backups')];
  fs.writeFileSync(file, '');
  fs.truncateSync(file, size);
  const device = await machine.attach(file, '--name', 'saved', '--via', via);
  expect(device).toContain(via);
  await sh(mkfs[0]!, ...mkfs.slice(1), device);
  const place = await machine.mount(device);
  for (const round of [1, 2]) {
    fs.writeFileSync(path.join(place, `file-${round}`), Buffer.alloc(2 * MIB, round));
    const { id, images } = await daemon.json<Snapshot>('snapshot', 'create', 'saved');
    fs.writeFileSync(path.join(place, 'later'), Buffer.alloc(MIB, 0x90 + round), { flush: true });
    const made = JSON.parse(
      await daemon.process('backup', 'saved', '--to', target, '--snapshot', id, '--json'),
    ) as Made;
    expect(made.point.kind).toBe(round === 1 ? 'full' : 'incremental');
    const restored = daemon.path(`restored-${round}`);
    await daemon.process('restore', target, '--disk', 'saved', '--to', restored);
    await sh('cmp', restored, images[0]!.kernelDevice.path);
    await daemon.cli('snapshot', 'destroy', id);
  }
  // A backup that takes its own snapshot freezes the file system that its backups lie on.
  const within = path.join(place, 'backups');
  await daemon.process('backup', 'saved', '--to', within);
  await daemon.process('verify', within);
  await machine.umount(place);
  await daemon.cli('detach', 'saved');
  for (const made of [file, target, daemon.path('restored-1'), daemon.path('restored-2')])
    fs.rmSync(made, { recursive: true });
}
