/** The kernel module's own tests, theme by theme, with the verbs of its console tool and NBD clients. */

import { execFile, spawnSync } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

import { refuseUnsuitable } from '../src/block/host-device.ts';
import { Embedded } from '../src/index.ts';
import type { Bytes } from '../src/index.ts';
import { MIB } from '../src/util/units.ts';
import { requirePrograms, requireRoot } from './requirements.ts';
import { DaemonUnderTest } from './system/daemon-under-test.ts';

const run = promisify(execFile);
const SIZE = 32 * MIB;
let daemon: DaemonUnderTest;
let embedded: Embedded;

beforeEach(async () => {
  daemon = new DaemonUnderTest();
  await daemon.start('--storage-portion', '1M');
  embedded = await Embedded.open();
});
afterEach(async () => {
  await embedded.close();
  await daemon.dispose();
});

/** A disk of bytes that differ from chunk to chunk, attached. */
async function disk(name: string, size = SIZE): Promise<string> {
  const file = daemon.path(`${name}.img`);
  fs.writeFileSync(file, crypto.createHash('shake128', { outputLength: size }).update(name).digest());
  await daemon.cli('attach', '--device', file);
  return file;
}

function open(exportName: string): Promise<Bytes> {
  return embedded.openExport(daemon.uri(exportName));
}

async function take(devices: readonly string[], ...options: string[]): Promise<string> {
  const id = (await daemon.cli('snapshot_create', '--device', ...devices, ...options)).trim();
  await daemon.cli('snapshot_take', '--id', id);
  return id;
}

function info(device: string, field: string): Promise<string> {
  return daemon.cli('snapshot_info', '--device', device, '--field', field).then((text) => text.trim());
}

async function image(device: string): Promise<Bytes> {
  return await embedded.openExport(await info(device, 'image'));
}

function sum(data: Uint8Array): string {
  return crypto.createHash('sha256').update(data).digest('hex');
}

/** The theme of all: what is written after the take is on the disk, and not in the image. */
async function writeAndCompare(names: readonly string[], ...options: string[]): Promise<string> {
  const lives = await Promise.all(names.map(open));
  const before = await Promise.all(lives.map((live) => live.read(0, SIZE)));
  const id = await take(names, ...options);
  for (const [i, name] of names.entries()) {
    const shown = await image(name);
    for (let at = 0; at < 8; at++) await lives[i]!.write(at * 3 * MIB + 4096 * at, Buffer.alloc(100_352, 1 + at));
    expect(sum(await shown.read(0, SIZE))).toBe(sum(before[i]!));
    expect(sum(await lives[i]!.read(0, SIZE))).not.toBe(sum(before[i]!));
    expect(await info(name, 'error_code')).toBe('0');
  }
  return id;
}

/** A loop device over a new file; detached by the returned function. */
function loopDevice(name: string, size: number): { device: string; detach: () => void } {
  const file = daemon.path(name);
  fs.writeFileSync(file, '');
  fs.truncateSync(file, size);
  const device = spawnSync('losetup', ['--find', '--show', file], { encoding: 'utf8' }).stdout.trim();
  return { device, detach: () => void spawnSync('losetup', ['--detach', device]) };
}

describe('themes of the kernel module', () => {
  it('simple, 1 device', async () => {
    await disk('a');
    const id = await writeAndCompare(['a']);
    await daemon.cli('snapshot_destroy', '--id', id);
    expect(await daemon.cli('snapshot_collect')).toBe('');
  });

  it('simple, 2 devices', async () => {
    await disk('a');
    await disk('b');
    await daemon.cli('snapshot_destroy', '--id', await writeAndCompare(['a', 'b']));
  });

  it('diff storage on a loop device', async (context) => {
    requireRoot(context);
    requirePrograms(context, 'losetup');
    await disk('a');
    const { device, detach } = loopDevice('storage', 16 * MIB);
    context.skip(device === '', 'needs a loop device');
    try {
      await daemon.cli('snapshot_destroy', '--id', await writeAndCompare(['a'], '--file', device));
    } finally {
      detach();
    }
  });

  it('diff storage on tmpfs', async (context) => {
    context.skip(!fs.existsSync('/dev/shm'), 'needs /dev/shm');
    await disk('a');
    const file = `/dev/shm/blksnap-test-${process.pid}`;
    const id = await writeAndCompare(['a'], '--file', file);
    expect(fs.statSync(file).size).toBeGreaterThan(0);
    await daemon.cli('snapshot_destroy', '--id', id);
    expect(fs.existsSync(file)).toBe(false);
  });

  it('diff storage in an unnamed file', async () => {
    await disk('a');
    const directory = daemon.path('storage');
    fs.mkdirSync(directory);
    const id = await writeAndCompare(['a'], '--file', directory);
    expect(fs.readdirSync(directory)).toEqual([]);
    await daemon.cli('snapshot_destroy', '--id', id);
  });

  it('stretch: the storage grows as it is needed', async () => {
    await disk('a');
    const live = await open('a');
    const before = await live.read(0, SIZE);
    const file = daemon.path('stretch');
    const id = await take(['a'], '--file', file);
    const small = fs.statSync(file).size;
    for (let at = 0; at < SIZE; at += MIB) await live.write(at, Buffer.alloc(MIB, 1 + at / MIB));
    expect(fs.statSync(file).size).toBeGreaterThan(Math.max(small, SIZE - MIB));
    expect(sum(await (await image('a')).read(0, SIZE))).toBe(sum(before));
    expect(await daemon.cli('snapshot_waitevent', '-i', id, '-t', '0')).toBe('result=timeout\n');
    await daemon.cli('snapshot_destroy', '-i', id);
  });

  it('overflow: the image is lost, the disk is untouched', async () => {
    const file = await disk('a');
    const live = await open('a');
    const id = await take(['a'], '--limit', '2M');
    const data = Buffer.alloc(8 * MIB, 0x77);
    await live.write(MIB, data);
    await live.flush();
    let last = '';
    while (!last.includes('event=corrupted')) last = await daemon.cli('snapshot_waitevent', '-i', id, '-t', '5000');
    expect(await info('a', 'error_code')).toBe('-28');
    await expect((await image('a')).read(0, 4096)).rejects.toMatchObject({ code: 'EIO' });
    expect(
      fs
        .readFileSync(file)
        .subarray(MIB, 9 * MIB)
        .equals(data),
    ).toBe(true);
    await daemon.cli('snapshot_destroy', '-i', id);
  });

  it('cbt: the map across a full copy and its increments', async () => {
    await disk('a');
    const live = await open('a');
    const map = daemon.path('map');
    const copy = Buffer.alloc(SIZE);
    let number = 0;
    for (let round = 0; round < 4; round++) {
      const id = await take(['a']);
      const shown = await (await image('a')).read(0, SIZE);
      await daemon.cli('readcbtmap', '--device', 'a', '--file', map);
      const blocks = [...fs.readFileSync(map)].flatMap((value, block) =>
        round === 0 || value > number ? [block] : [],
      );
      expect(blocks.length).toBe(round === 0 ? SIZE / 65_536 : 3);
      for (const block of blocks) shown.copy(copy, block * 65_536, block * 65_536, (block + 1) * 65_536);
      expect(copy.equals(shown)).toBe(true);
      const now = await daemon.cli('cbtinfo', '--device', 'a');
      number = Number(/changes_number=(\d+)/.exec(now)?.[1]) - 1;
      await daemon.cli('snapshot_destroy', '-i', id);
      await live.write((3 + round * 7) * 65_536 + 512, Buffer.alloc(512, round + 1));
      await live.write((200 + round * 7) * 65_536 - 512, Buffer.alloc(1024, round + 1));
    }
  });

  it('diff_storage: snapshots whose storages interleave', async () => {
    await disk('a');
    const live = await open('a');
    const held: Array<{ id: string; shown: Bytes; before: string }> = [];
    for (let round = 0; round < 4; round++) {
      const before = sum(await live.read(0, SIZE));
      const id = await take(['a'], '--file', daemon.path(`storage-${round}`));
      held.push({ id, shown: await image('a'), before });
      for (let at = round; at < 64; at += 2) await live.write(at * 512 * 1024, Buffer.alloc(8192, 0x40 + round));
    }
    for (const index of [1, 2, 0, 0]) {
      for (const { shown, before } of held) expect(sum(await shown.read(0, SIZE))).toBe(before);
      await daemon.cli('snapshot_destroy', '-i', held.splice(index, 1)[0]!.id);
    }
  });

  it('pullout: a disk that goes away loses its image, others keep theirs', async () => {
    const file = await disk('a');
    await disk('b');
    const [a, b] = [await open('a'), await open('b')];
    const before = sum(await b.read(0, SIZE));
    const id = await take(['a', 'b']);
    const kept = await image('b');
    fs.truncateSync(file, 0);
    await a.write(0, Buffer.alloc(4096)).catch(() => {});
    await b.write(0, Buffer.alloc(4096, 9));
    let last = '';
    while (!last.includes('event=corrupted')) last = await daemon.cli('snapshot_waitevent', '-i', id, '-t', '5000');
    expect(last).toContain('device=a');
    expect(await info('b', 'error_code')).toBe('0');
    expect(sum(await kept.read(0, SIZE))).toBe(before);
    await daemon.cli('snapshot_destroy', '-i', id);
  });

  it('image write, and what was written is there for the next client', async (context) => {
    requirePrograms(context, 'mkfs.ext4', 'debugfs', 'nbdcopy');
    await disk('a');
    const live = await open('a');
    const file = daemon.path('fs.img');
    fs.writeFileSync(file, Buffer.alloc(SIZE));
    await run('mkfs.ext4', ['-q', '-F', file]);
    await live.write(0, fs.readFileSync(file));
    const before = sum(await live.read(0, SIZE));
    const id = await take(['a']);
    const uri = await info('a', 'image');
    // As a file system would be mounted, written, unmounted, and mounted again.
    fs.writeFileSync(daemon.path('note'), 'written to the image');
    const copy = daemon.path('copy.img');
    await run('nbdcopy', [uri, copy]);
    await run('debugfs', ['-w', '-R', `write ${daemon.path('note')} note`, copy]);
    await run('nbdcopy', [copy, uri]);
    const again = daemon.path('again.img');
    await run('nbdcopy', [uri, again]);
    expect((await run('debugfs', ['-R', 'cat note', again])).stdout).toBe('written to the image');
    expect(sum(await live.read(0, SIZE))).toBe(before);
    await daemon.cli('snapshot_destroy', '-i', id);
  });

  it('destroy while busy: readers of the image end, the disk goes on', async () => {
    await disk('a');
    const live = await open('a');
    const id = await take(['a']);
    const shown = await image('a');
    const reading = (async () => {
      for (;;) await shown.read(0, 4 * MIB);
    })();
    const writes = Promise.all([...Array(64).keys()].map((i) => live.write(i * 65_536, Buffer.alloc(65_536, i))));
    const ended = reading.catch((cause: unknown) => cause);
    await daemon.cli('snapshot_destroy', '-i', id);
    expect(await ended).toBeInstanceOf(Error);
    await writes;
    expect(await live.read(63 * 65_536, 16)).toEqual(Buffer.alloc(16, 63));
    await expect(daemon.cli('snapshot_info', '-d', 'a')).rejects.toMatchObject({ code: 5 });
  });

  it('inline encryption: such a device is refused', () => {
    // What sysfs says of one: machines that have it are rare.
    const queue = (name: string): { exists: (asked: string) => boolean; text: () => string } => ({
      exists: (asked) => asked === name,
      text: () => '',
    });
    expect(() => refuseUnsuitable('/dev/mmcblk0', queue('queue/crypto'))).toThrow(/inline encryption is not supported/);
    expect(() => refuseUnsuitable('/dev/vda', queue('queue/rotational'))).not.toThrow();
    const integrity = {
      exists: () => false,
      text: (name: string) => (name === 'integrity/format' ? 'T10-DIF-TYPE1-CRC' : ''),
    };
    expect(() => refuseUnsuitable('/dev/sda', integrity)).toThrow(/integrity metadata is not supported/);
  });
});
