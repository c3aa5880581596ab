/** The kernel module's own tests, theme by theme, as it has them: block devices in the kernel, the verbs of the console
 *  tool, and images that are block devices. test/themes.test.ts has them without a kernel. */

import fs from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { refuseUnsuitable } from '../../../src/block/host-device.ts';
import { MIB } from '../../../src/util/units.ts';
import { Machine, sh } from '../machine.ts';
import { QuickDaemon } from '../quick-daemon.ts';

const SIZE = 32 * MIB;
const BLOCK = 65_536;

/** An origin, and the kernel device through which it is used. */
interface Origin {
  readonly origin: string;
  readonly live: string;
}

const daemon = new QuickDaemon();
let machine: Machine;
let number = 0;

beforeAll(async () => {
  machine = await Machine.startWith(daemon, '--storage-portion', '1M');
  for (const module of ['loop', 'dm_mod']) await sh('modprobe', module);
});
beforeEach(async () => {
  for (const id of (await tool('snapshot_collect')).split('\n').filter(Boolean))
    await tool('snapshot_destroy', '-i', id);
});
afterAll(() => machine.dispose());

function tool(...words: string[]): Promise<string> {
  return daemon.cli(...words);
}

async function loop(bytes: number): Promise<string> {
  const file = daemon.path(`loop-${number++}`);
  await sh('sh', '-c', `head -c ${bytes} /dev/urandom >${file}`);
  return (await sh('losetup', '--find', '--show', file)).trim();
}

/** A new loop device, attached. */
async function disk(): Promise<Origin> {
  const origin = await loop(SIZE);
  await tool('attach', '--device', origin);
  return { origin, live: await nodeOf(origin) };
}

async function nodeOf(origin: string): Promise<string> {
  const { disks } = await daemon.json<{ disks: Array<{ path: string; kernelDevice: { path: string } }> }>('list');
  return disks.find((one) => one.path === fs.realpathSync(origin))!.kernelDevice.path;
}

async function take(origins: readonly Origin[], ...options: string[]): Promise<string> {
  const devices = origins.map(({ origin }) => origin);
  const id = (await tool('snapshot_create', '--device', ...devices, ...options)).trim();
  await tool('snapshot_take', '--id', id);
  return id;
}

async function info({ origin }: Origin, field: string): Promise<string> {
  return (await tool('snapshot_info', '--device', origin, '--field', field)).trim();
}

function fill(device: string, offset: number, data: Buffer): void {
  const fd = fs.openSync(device, 'r+');
  fs.writeSync(fd, data, 0, data.length, offset);
  fs.fsyncSync(fd);
  fs.closeSync(fd);
}

/** Resolves when a direct read fails, or the device is empty, as one is that was taken down. */
async function readUntilItEnds(device: string): Promise<void> {
  const read = `dd if=${device} bs=1M count=8 iflag=direct status=none | wc -c`;
  await sh('sh', '-c', `while [ $(${read}) = ${8 * MIB} ]; do :; done 2>/dev/null`);
}

/** A device that goes away when nbd-client says so, attached. */
async function pullable(): Promise<Origin> {
  const [file, socket, origin] = [daemon.path('pulled'), daemon.path('pulled.sock'), '/dev/nbd15'];
  await sh('sh', '-c', `head -c ${SIZE} /dev/urandom >${file}`);
  await sh('qemu-nbd', '--fork', '--persistent', '--format=raw', `--socket=${socket}`, file);
  await sh('nbd-client', '-unix', socket, origin);
  // What the page cache has of a device can be read when that is gone.
  await tool('attach', '--device', origin, '--dev', '--direct');
  return { origin, live: await nodeOf(origin) };
}

async function lastEvent(id: string): Promise<string> {
  let last = '';
  while (!last.includes('event=corrupted')) last = await tool('snapshot_waitevent', '-i', id, '-t', '20000');
  return last;
}

/** The theme of all: what is written after the take is on the disk, and not in the image. */
async function writeAndCompare(origins: readonly Origin[], ...options: string[]): Promise<string> {
  const before = await Promise.all(origins.map(({ live }) => machine.sha256(live)));
  const id = await take(origins, ...options);
  for (const [index, one] of origins.entries()) {
    for (let at = 0; at < 8; at++) fill(one.live, at * 3 * MIB + 4096 * at, Buffer.alloc(100_352, 1 + at));
    expect(await machine.sha256(await info(one, 'image'))).toBe(before[index]);
    expect(await machine.sha256(one.live)).not.toBe(before[index]);
    expect(await info(one, 'error_code')).toBe('0');
  }
  return id;
}

describe('themes of the kernel module, with kernel devices', () => {
  it('simple, 1 device', async () => {
    const id = await writeAndCompare([await disk()]);
    expect((await tool('snapshot_collect')).trim()).toBe(id);
    await tool('snapshot_destroy', '--id', id);
    expect(await tool('snapshot_collect')).toBe('');
  });

  it('simple, 2 devices', async () => {
    await tool('snapshot_destroy', '--id', await writeAndCompare([await disk(), await disk()]));
  });

  it('diff storage on a loop device', async () => {
    const storage = await loop(16 * MIB);
    await tool('snapshot_destroy', '--id', await writeAndCompare([await disk()], '--file', storage));
  });

  it('diff storage on tmpfs', async () => {
    await tool('snapshot_destroy', '--id', await writeAndCompare([await disk()], '--file', '/dev/shm/storage'));
    expect(fs.existsSync('/dev/shm/storage')).toBe(false);
  });

  it('diff storage in an unnamed file', async () => {
    const directory = daemon.path('unnamed');
    fs.mkdirSync(directory);
    const id = await writeAndCompare([await disk()], '--file', directory);
    expect(fs.readdirSync(directory)).toEqual([]);
    await tool('snapshot_destroy', '--id', id);
  });

  it('stretch: the storage grows as it is needed', async () => {
    const one = await disk();
    const before = await machine.sha256(one.live);
    const file = daemon.path('stretch');
    const id = await take([one], '--file', file);
    fill(one.live, 0, Buffer.alloc(SIZE, 0x11));
    expect(fs.statSync(file).size).toBeGreaterThanOrEqual(SIZE - MIB);
    expect(await machine.sha256(await info(one, 'image'))).toBe(before);
    await tool('snapshot_destroy', '-i', id);
  });

  it('overflow: the image is lost, the disk is untouched', async () => {
    const one = await disk();
    const id = await take([one], '--limit', '2M');
    const data = Buffer.alloc(8 * MIB, 0x77);
    fill(one.live, MIB, data);
    await lastEvent(id);
    expect(await info(one, 'error_code')).toBe('-28');
    const image = await info(one, 'image');
    await expect(sh('dd', `if=${image}`, 'of=/dev/null', 'bs=4k', 'count=1')).rejects.toThrow(/Input\/output error/);
    expect(
      fs
        .readFileSync(one.live)
        .subarray(MIB, 9 * MIB)
        .equals(data),
    ).toBe(true);
    await tool('snapshot_destroy', '-i', id);
  });

  it('cbt: the map across a full copy and its increments', async () => {
    const one = await disk();
    const map = daemon.path('map');
    const copy = Buffer.alloc(SIZE);
    let last = 0;
    for (let round = 0; round < 3; round++) {
      const id = await take([one]);
      const shown = fs.readFileSync(await info(one, 'image'));
      await tool('readcbtmap', '--device', one.origin, '--file', map);
      const changed = [...fs.readFileSync(map)].flatMap((value, at) => (round === 0 || value > last ? [at] : []));
      expect(changed.length).toBe(round === 0 ? SIZE / BLOCK : 3);
      for (const at of changed) shown.copy(copy, at * BLOCK, at * BLOCK, (at + 1) * BLOCK);
      expect(copy.equals(shown)).toBe(true);
      last = Number(/changes_number=(\d+)/.exec(await tool('cbtinfo', '--device', one.live))?.[1]) - 1;
      await tool('snapshot_destroy', '-i', id);
      fill(one.live, (3 + round * 7) * BLOCK + 4096, Buffer.alloc(4096, round + 1));
      const sector = ((200 + round * 7) * BLOCK) / 512 - 1;
      await tool('markdirtyblock', '--device', one.origin, '--ranges', `${sector}:2`);
    }
  });

  it('diff_storage: snapshots whose storages interleave', async () => {
    const one = await disk();
    const held: Array<{ id: string; image: string; before: string }> = [];
    for (let round = 0; round < 3; round++) {
      const before = await machine.sha256(one.live);
      const id = await take([one], '--file', daemon.path(`storage-${round}`));
      held.push({ id, image: await info(one, 'image'), before });
      for (let at = round; at < 32; at += 2) fill(one.live, at * MIB, Buffer.alloc(8192, 0x40 + round));
    }
    for (const index of [1, 0, 0]) {
      for (const { image, before } of held) expect(await machine.sha256(image)).toBe(before);
      await tool('snapshot_destroy', '-i', held.splice(index, 1)[0]!.id);
    }
  });

  it('image write: mounted, written, unmounted, mounted again', async () => {
    const one = await disk();
    await sh('mkfs.ext4', '-q', '-F', one.live);
    const before = await machine.sha256(one.live);
    const id = await take([one]);
    const image = await info(one, 'image');
    const place = await machine.mount(image);
    fs.writeFileSync(path.join(place, 'note'), 'written to the image');
    await machine.umount(place);
    const again = await machine.mount(image);
    expect(fs.readFileSync(path.join(again, 'note'), 'utf8')).toBe('written to the image');
    await machine.umount(again);
    expect(await machine.sha256(one.live)).toBe(before);
    await tool('snapshot_destroy', '-i', id);
  });

  it('pullout: a device that goes away loses its image, others keep theirs', async () => {
    const kept = await disk();
    const pulled = await pullable();
    const before = await machine.sha256(kept.live);
    const id = await take([pulled, kept]);
    const reading = readUntilItEnds(await info(pulled, 'image'));
    await sh('nbd-client', '-d', pulled.origin);
    const write = ['if=/dev/zero', `of=${pulled.live}`, 'bs=4k', 'count=1', 'seek=3', 'oflag=direct'];
    await expect(sh('dd', ...write)).rejects.toThrow(/Input\/output error/);
    fill(kept.live, 0, Buffer.alloc(4096, 9));
    expect(await lastEvent(id)).toContain('device=');
    await reading;
    expect(await info(pulled, 'error_code')).toBe('-5');
    expect(await info(kept, 'error_code')).toBe('0');
    expect(await machine.sha256(await info(kept, 'image'))).toBe(before);
    await tool('snapshot_destroy', '-i', id);
    await tool('detach', '--device', pulled.origin, '--force');
    expect(fs.existsSync(`/sys/block/${path.basename(pulled.live)}/pid`)).toBe(false);
  });

  it('pullout of a volume: another table for it ends its image, others keep theirs', async () => {
    const [kept, below] = [await disk(), await loop(SIZE)];
    const origin = '/dev/mapper/gone';
    await sh('dmsetup', 'create', 'gone', '--table', `0 ${SIZE / 512} linear ${below} 0`);
    await sh('dmsetup', 'mknodes');
    await tool('attach', '--device', origin);
    const gone = { origin, live: await nodeOf(origin) };
    const before = await machine.sha256(kept.live);
    const id = await take([gone, kept]);
    await sh('dmsetup', 'load', 'gone', '--table', `0 ${SIZE / 512} error`);
    await sh('dmsetup', 'resume', 'gone');
    expect(await lastEvent(id)).toContain('device=');
    expect(await info(kept, 'error_code')).toBe('0');
    expect(await machine.sha256(await info(kept, 'image'))).toBe(before);
    await tool('snapshot_destroy', '-i', id);
    await tool('detach', '--device', origin, '--force');
    await sh('dmsetup', 'remove', 'gone');
  });

  it('destroy while busy: readers of the image end, the disk goes on', async () => {
    const one = await disk();
    const id = await take([one]);
    const image = await info(one, 'image');
    const reading = readUntilItEnds(image);
    for (let at = 0; at < 64; at++) fill(one.live, at * BLOCK, Buffer.alloc(BLOCK, at));
    await tool('snapshot_destroy', '-i', id);
    await reading;
    fill(one.live, 0, Buffer.alloc(BLOCK, 0x21));
    expect(fs.readFileSync(one.live).subarray(0, BLOCK).equals(Buffer.alloc(BLOCK, 0x21))).toBe(true);
    await expect(tool('snapshot_info', '-d', one.origin)).rejects.toMatchObject({ code: 5 });
  });

  it('inline encryption: such a device is refused', () => {
    // What sysfs says of one: no device in this kernel has it.
    const crypto = { exists: (asked: string) => asked === 'queue/crypto', text: () => '' };
    expect(() => refuseUnsuitable('/dev/mmcblk0', crypto)).toThrow(/inline encryption is not supported/);
  });
});
