/** File systems on a kernel device, in use while snapshots of it come and go: what fio wrote is there, images show the
 *  files as they were, can be mounted, written and mounted again, and back up to the same bytes; fsck finds nothing. */

import fs from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MIB } from '../../../src/util/units.ts';
import { expectBackupsOfMounted } from '../backups-of-mounted.ts';
import { Machine, sh } from '../machine.ts';
import { QuickDaemon } from '../quick-daemon.ts';

interface Snapshot {
  readonly id: string;
  readonly freeze: { readonly frozenMs: number } | null;
  readonly images: ReadonlyArray<{ readonly kernelDevice: { readonly path: string } }>;
}

const daemon = new QuickDaemon();
let machine: Machine;

beforeAll(async () => {
  machine = await Machine.startWith(daemon);
});
afterAll(() => machine.dispose());

const KINDS = [
  { name: 'ext4', mkfs: ['mkfs.ext4', '-q', '-F'], fsck: ['fsck.ext4', '-fn'], twice: [] },
  {
    name: 'ext4 of 1 KiB blocks',
    mkfs: ['mkfs.ext4', '-q', '-F', '-b', '1024'],
    fsck: ['fsck.ext4', '-fn'],
    twice: [],
  },
  // Its image has the same UUID, which xfs mounts but once.
  { name: 'xfs', mkfs: ['mkfs.xfs', '-q', '-f'], fsck: ['xfs_repair', '-n'], twice: ['-o', 'nouuid'] },
];

function command([program, ...words]: readonly string[], ...more: string[]): Promise<string> {
  return sh(program!, ...words, ...more);
}

/** Writes a file and verifies it, past the page cache, until it has gone over it. */
function fio(place: string): Promise<string> {
  const load = ['--rw=randwrite', '--bsrange=4k-64k', '--direct=1', '--size=16M', '--loops=3', '--randrepeat=0'];
  const verify = ['--verify=crc32c', '--verify_fatal=1', '--verify_state_save=0'];
  return sh('fio', '--name=verify', `--filename=${place}/fio`, ...load, ...verify);
}

describe.each(KINDS)('$name', ({ mkfs, fsck, twice }) => {
  test('outlives snapshots under load, and so do their images', async () => {
    const device = await machine.attach('/dev/ram0', '--name', 'data');
    await command(mkfs, device);
    const place = await machine.mount(device);
    const loaded = fio(place);
    for (let round = 1; round <= 2; round++) {
      const before = Buffer.alloc(MIB, round);
      fs.writeFileSync(path.join(place, 'file'), before);
      const { id, freeze, images } = await daemon.json<Snapshot>('snapshot', 'create', 'data');
      expect(freeze!.frozenMs).toBeGreaterThan(0);
      fs.writeFileSync(path.join(place, 'file'), Buffer.alloc(MIB, 0x55), { flush: true });
      const image = images[0]!.kernelDevice.path;
      const shown = await machine.mount(image, ...twice);
      expect(fs.readFileSync(path.join(shown, 'file')).equals(before)).toBe(true);
      fs.writeFileSync(path.join(shown, 'note'), `of image ${round}`, { flush: true });
      await machine.umount(shown);
      const again = await machine.mount(image, ...twice);
      expect(fs.readFileSync(path.join(again, 'note'), 'utf8')).toBe(`of image ${round}`);
      await machine.umount(again);
      await command(fsck, image);
      expect(fs.existsSync(path.join(place, 'note'))).toBe(false);
      await daemon.cli('snapshot', 'destroy', id);
    }
    await loaded;
    await machine.umount(place);
    await command(fsck, device);
    await daemon.cli('detach', 'data');
    await command(fsck, '/dev/ram0');
  });
});

test.each([
  { ...KINDS[0]!, size: 64 * MIB },
  // It has at least 300 MiB.
  { ...KINDS[2]!, size: 320 * MIB },
])('backups of a mounted $name restore to what its images showed', async ({ mkfs, size }) => {
  await expectBackupsOfMounted({ machine, daemon, via: 'nbd', mkfs, size });
});
