/** Live attach of real volumes: LVM's, and a LUKS container on one, mounted and written to, while LVM and cryptsetup go on
 *  to know them. */

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeAll, expect, test } from 'vitest';
import { EXT4, LiveWorld, run, XFS } from '../live-world.ts';
import type { FileSystem } from '../live-world.ts';

let world: LiveWorld | undefined;

beforeAll(() => {
  for (const name of ['nbd', 'dm-mod', 'dm-thin-pool', 'dm-crypt', 'xts', 'xfs']) run('modprobe', name);
  if (!fs.existsSync('/dev/ram0')) run('modprobe', 'brd', 'rd_nr=4', `rd_size=${320 * 1024}`);
  run('vgcreate', '-q', '-y', 'vg', '/dev/ram0', '/dev/ram1');
});
afterEach(async () => {
  await world?.dispose();
  world = undefined;
  run('lvremove', '-q', '-f', 'vg');
});

/** A world on a logical volume of these options of lvcreate. */
async function worldOf(name: string, options: readonly string[], fileSystem: FileSystem): Promise<LiveWorld> {
  world = new LiveWorld(`vg-${name}`, () => void run('lvcreate', '-q', '-y', '-n', name, ...options, 'vg'), fileSystem);
  await world.start();
  return world;
}

/** The device's segment type and state, as LVM has them. */
function lvs(name: string): string {
  return run('lvs', '--noheadings', '-o', 'segtype,lv_active,lv_size', '--units', 'm', `vg/${name}`).trim();
}

const KINDS = [
  { name: 'linear', options: ['-L', '320M'], segment: 'linear', fileSystem: XFS },
  { name: 'striped', options: ['-i', '2', '-L', '48M'], segment: 'striped', fileSystem: EXT4 },
  { name: 'thin', options: ['-V', '320M', '--thinpool', 'pool'], segment: 'thin', fileSystem: XFS },
];

test.each(KINDS)('a $name volume goes there and back, as LVM knows it all the time', async (kind) => {
  if (kind.name === 'thin') run('lvcreate', '-q', '-y', '--type', 'thin-pool', '-L', '160M', '-n', 'pool', 'vg');
  const here = await worldOf(kind.name, kind.options, kind.fileSystem);
  const { client, place, daemon } = here;
  const load = here.load();
  const [table, known] = [here.table(), lvs(kind.name)];
  expect(table).toContain(` ${kind.segment} `);
  await client.attach({ path: `/dev/vg/${kind.name}`, name: 'lv' });
  const ours = here.table();
  expect(ours).not.toBe(table);
  expect(lvs(kind.name)).toBe(known);
  run('lvchange', '--addtag', 'attached', `vg/${kind.name}`);
  expect(here.table()).toBe(ours);

  const before = Buffer.alloc(1 << 20, 0x5a);
  fs.writeFileSync(path.join(place, 'file'), before, { flush: true });
  const { id, images } = await client.createSnapshot({ disks: ['lv'] });
  fs.writeFileSync(path.join(place, 'file'), Buffer.alloc(1 << 20, 0xa5), { flush: true });
  const shown = daemon.path('shown');
  fs.mkdirSync(shown);
  run('mount', ...kind.fileSystem.twice, images[0]!.kernelDevice!.path!, shown);
  try {
    expect(fs.readFileSync(path.join(shown, 'file')).equals(before)).toBe(true);
  } finally {
    run('umount', shown);
  }
  await client.destroySnapshot(id);

  await daemon.stop('SIGKILL');
  await here.start();
  expect(here.table()).toBe(ours);
  await client.detach('lv');
  expect(here.table()).toBe(table);
  expect(lvs(kind.name)).toBe(known);
  await load.end();
  here.check();
});

test('lvextend of an attached volume is noticed, and the volume attached again as it is then', async () => {
  const here = await worldOf('grows', ['-L', '48M'], EXT4);
  const { client, place } = here;
  await client.attach({ path: here.device, name: 'lv' });
  fs.writeFileSync(path.join(place, 'file'), 'as it was', { flush: true });
  run('lvextend', '-q', '-L', '+8M', 'vg/grows');
  const table = here.table();
  await expect.poll(async () => (await client.disks())[0]?.state).toBe('failed');
  await expect(client.attach({ path: here.device, name: 'other' })).rejects.toThrow(/attached already, as "lv"/);
  expect(await client.attach({ path: here.device })).toMatchObject({ name: 'lv', size: 56 << 20 });
  expect(fs.readFileSync(path.join(place, 'file'), 'utf8')).toBe('as it was');
  await client.detach('lv');
  expect(here.table()).toBe(table);
  here.check();
});

test('a LUKS container: refused with its key in a keyring, and else moved, the key known to nobody', async () => {
  run('lvcreate', '-q', '-y', '-n', 'luks', '-L', '96M', 'vg');
  const key = path.join('/run', 'key');
  fs.writeFileSync(key, createHash('sha512').update('a key').digest());
  const cheap = ['--pbkdf', 'pbkdf2', '--pbkdf-force-iterations', '1000'];
  run('cryptsetup', 'luksFormat', '-q', '--type', 'luks2', ...cheap, '/dev/vg/luks', key);
  const open = (...options: string[]) => {
    run('cryptsetup', 'open', '--key-file', key, ...options, '/dev/vg/luks', 'secret');
  };
  // Its logical blocks are of 4 KiB.
  world = new LiveWorld('secret', () => open('--disable-keyring'), { ...EXT4, mkfs: ['mkfs.ext4', '-q', '-F'] });
  const { client, daemon } = world;
  await world.start();
  const load = world.load();
  const table = world.table();
  await world.attach();
  expect(run('cryptsetup', 'status', 'secret')).toMatch(/is active and is in use/);
  const secret = /crypt \S+ ([0-9a-f]{64,})/.exec(table)![1]!;
  for (const file of fs.readdirSync(daemon.state)) {
    const place = path.join(daemon.state, file);
    if (fs.statSync(place).isFile()) expect(fs.readFileSync(place).includes(secret.slice(0, 16))).toBe(false);
  }
  await client.detach('secret');
  expect(world.table()).toBe(table);
  await load.end();
  world.check();
  run('cryptsetup', 'close', 'secret');
  open();
  await expect(world.attach()).rejects.toThrow(/key is in a keyring.*--disable-keyring/);
  run('cryptsetup', 'close', 'secret');
});
