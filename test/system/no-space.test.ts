/** A full file system under the daemon's directory, and under the backups: errors that say so, nothing lost, and all goes on
 *  when there is space again. */

import crypto from 'node:crypto';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { TestContext } from 'vitest';
import { Embedded } from '../../src/index.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { DaemonWorld, sameFiles } from '../daemon/world.ts';
import { requirePrograms, requireRoot } from '../requirements.ts';
import { SMALL_SYSTEMS, SmallPlace } from './small-place.ts';

const DISK_BYTES = 256 * MIB;
/** A change map of blocks of 4 KiB has a page for so much. */
const STEP = 16 * MIB;

interface Backup {
  readonly point: { readonly kind: string };
}

let world: DaemonWorld;
let place: SmallPlace | null = null;
beforeEach(() => {
  world = new DaemonWorld();
});
afterEach(async () => {
  if (world.daemon?.running === true) await world.stop();
  place?.umount();
  place = null;
  await world.close();
});

/** Null, and the test is skipped, where nothing can be mounted. */
function mount(context: TestContext, kind: (typeof SMALL_SYSTEMS)[number], where: string, bytes: number): SmallPlace {
  requireRoot(context);
  requirePrograms(context, 'mkfs.ext4');
  try {
    place = new SmallPlace(kind, where, bytes);
  } catch (cause) {
    return context.skip(`cannot mount ${kind}: ${String(cause)}`);
  }
  return place;
}

/** Writes what no compression makes smaller, and flushes. */
async function scribble(uri: string, offset: number, length: number): Promise<void> {
  const embedded = await Embedded.open({ driver: 'portable' });
  const disk = await embedded.openExport(uri);
  await disk.write(offset, crypto.randomBytes(length));
  await disk.flush();
  await embedded.close();
}

/** The snapshot keeps what is overwritten in memory: the daemon's directory may be full. */
async function backUp(): Promise<string> {
  const words = ['backup', 'vda', '--to', world.file('backups'), '--storage', ':memory:', '--limit', '16M'];
  return ((await world.json(...words)) as unknown as Backup).point.kind;
}

async function restored(): Promise<string> {
  const file = world.file(`restored-${Math.random()}.img`);
  await world.json('restore', world.file('backups'), '--disk', 'vda', '--to', file);
  return file;
}

describe.each(SMALL_SYSTEMS)('on %s', (kind) => {
  test('a daemon whose directory is full serves its disks, tracks them, and says what it cannot do', async (context) => {
    const small = mount(context, kind, world.dir, 4 * MIB);
    // A map of 16 pages, which no write has touched yet.
    const image = world.image('vda.img', DISK_BYTES);
    await world.start(image, '--tracking-block-min-shift', '12');
    expect(await backUp()).toBe('full');
    small.fill();
    const { uri } = (await world.client.disks())[0]!;
    for (let offset = 0; offset < DISK_BYTES; offset += STEP) await scribble(uri, offset, 64 * KIB);
    const other = await world.cli('attach', world.image('vdb.img', DISK_BYTES));
    expect(other.code).not.toBe(0);
    expect(other.stderr).toMatch(/ENOSPC/);
    expect((await world.client.disks()).map(({ name }) => name)).toEqual(['vda']);
    // Killed and started while it is full.
    await world.stop('SIGKILL');
    await world.start('--tracking-block-min-shift', '12');
    expect((await world.client.disks()).map(({ name }) => name)).toEqual(['vda']);
    expect(await backUp()).toBe('incremental');
    expect(sameFiles(image, await restored())).toBe(true);
    small.empty();
    await world.json('attach', world.file('vdb.img'));
    await scribble(uri, 0, MIB);
    expect(await backUp()).toBe('incremental');
    expect(sameFiles(image, await restored())).toBe(true);
  });

  test('a backup into a full place fails and takes nothing with it; with space the next one is incremental', async (context) => {
    const small = mount(context, kind, world.file('backups'), 24 * MIB);
    const image = world.image('vda.img', 64 * MIB, 8 * MIB);
    await world.start(image);
    expect(await backUp()).toBe('full');
    const { uri } = (await world.client.disks())[0]!;
    for (const leave of [2 * MIB, 0]) {
      small.fill(leave);
      await scribble(uri, 16 * MIB, 4 * MIB);
      const failed = await world.cli('backup', 'vda', '--to', small.path);
      expect(failed.code).not.toBe(0);
      expect(failed.stderr).toMatch(/ENOSPC/);
      expect(failed.stderr).toMatch(/earlier restore points are untouched/);
      await world.json('verify', small.path);
    }
    small.empty();
    expect(await backUp()).toBe('incremental');
    await world.json('verify', small.path);
    expect(sameFiles(image, await restored())).toBe(true);
  });
});
