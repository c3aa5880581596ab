/** Guards on real files, and as root on real loop devices and filesystems. */

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { MIB } from '../util/units.ts';
import { Core } from '../../test/core.ts';
import { requirePrograms, requireRoot } from '../../test/requirements.ts';
import { refuseOwnStorage, refuseSharedOrigin } from './origin-guard.ts';
import { loopsOver, underlyingPath } from './underlying.ts';

let core: Core;
let image = '';
const undo: Array<() => void> = [];

beforeEach(async () => {
  core = await Core.open();
  image = core.path('image');
  fs.writeFileSync(image, '');
  fs.truncateSync(image, 16 * MIB);
});
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) step();
  await core.close();
});

const shell = (program: string, ...words: string[]): string =>
  execFileSync(program, words, { encoding: 'utf8' }).trim();

function loop(file: string, ...options: string[]): string {
  const device = shell('losetup', ...options, '--find', '--show', file);
  undo.push(() => shell('losetup', '--detach', device));
  return device;
}

/** A filesystem on a device, mounted. */
function mounted(device: string): string {
  shell('mkfs.ext4', '-q', device);
  const directory = core.path(`mount-${path.basename(device)}`);
  fs.mkdirSync(directory);
  shell('mount', device, directory);
  undo.push(() => shell('umount', directory));
  return directory;
}

function guard(storage: string, origin: string): () => void {
  return () => {
    const fd = fs.openSync(storage, 'r+');
    try {
      refuseOwnStorage([{ name: 'vm', path: origin }], { path: storage, fd });
    } finally {
      fs.closeSync(fd);
    }
  };
}

test('a file is itself by any name', () => {
  fs.linkSync(image, core.path('link'));
  fs.symlinkSync(image, core.path('symbolic'));
  for (const name of ['link', 'symbolic']) {
    expect(underlyingPath(core.path(name)).own).toBe(underlyingPath(image).own);
    expect(() => refuseSharedOrigin(core.path(name), [{ name: 'vm', path: image }])).toThrow(
      expect.objectContaining({ code: 'EBUSY', message: expect.stringMatching(/it is disk "vm"/) }),
    );
  }
});

test('two files of one filesystem are strangers', () => {
  fs.writeFileSync(core.path('other'), 'x');
  expect(() =>
    refuseSharedOrigin(core.path('other'), [
      { name: 'vm', path: image },
      { name: 'gone', path: '/no/such' },
    ]),
  ).not.toThrow();
  expect(guard(core.path('other'), image)).not.toThrow();
  expect(guard(image, image)).toThrow(/lies on disk "vm"/);
});

describe('through a loop device', () => {
  test('over the origin: no storage there, nor in a filesystem on it', (context) => {
    requireRoot(context);
    requirePrograms(context, 'losetup', 'mkfs.ext4');
    const device = loop(image);
    expect(underlyingPath(device).all).toContain(underlyingPath(image).own);
    expect(guard(device, image)).toThrow(/lies on disk "vm"/);
    const directory = mounted(device);
    fs.writeFileSync(path.join(directory, 'storage'), '');
    expect(guard(path.join(directory, 'storage'), image)).toThrow(/lies on disk "vm"/);
    expect(guard(path.join(directory, 'storage'), device)).toThrow(/lies on disk "vm"/);
  });

  test('nested: a file in a filesystem on a loop device over the origin', (context) => {
    requireRoot(context);
    requirePrograms(context, 'losetup', 'mkfs.ext4');
    const inner = path.join(mounted(loop(image)), 'inner');
    fs.writeFileSync(inner, '');
    fs.truncateSync(inner, 4 * MIB);
    expect(guard(loop(inner), image)).toThrow(/lies on disk "vm"/);
  });

  test('the origin is busy, unless it only reads', (context) => {
    requireRoot(context);
    requirePrograms(context, 'losetup');
    loop(image, '--read-only');
    expect(loopsOver(image)).toEqual([]);
    const device = loop(image);
    expect(() => refuseSharedOrigin(image, [])).toThrow(
      expect.objectContaining({ code: 'EBUSY', message: expect.stringContaining(path.basename(device)) }),
    );
  });

  test('an attached file is not attached once more', (context) => {
    requireRoot(context);
    requirePrograms(context, 'losetup');
    expect(() => refuseSharedOrigin(loop(image), [{ name: 'vm', path: image }])).toThrow(
      /shares its data with disk "vm"/,
    );
  });

  test('a partition lies on its disk, and not on its neighbour', (context) => {
    requireRoot(context);
    requirePrograms(context, 'losetup', 'sfdisk', 'partx');
    execFileSync('sfdisk', ['-q', image], { input: 'label: gpt\nsize=4M\nsize=4M\n' });
    const device = loop(image);
    shell('partx', '--add', device);
    undo.push(() => shell('partx', '--delete', device));
    const [first, second] = [`${device}p1`, `${device}p2`];
    if (!fs.existsSync(first)) context.skip(true, 'no nodes of partitions appear here');
    expect(guard(first, device)).toThrow(/lies on disk "vm"/);
    expect(guard(device, first)).toThrow(/lies on disk "vm"/);
    expect(guard(first, image)).toThrow(/lies on disk "vm"/);
    expect(guard(first, second)).not.toThrow();
    expect(() => refuseSharedOrigin(first, [{ name: 'vm', path: second }])).not.toThrow();
  });
});

test('a snapshot refuses such a place, also when it is appended, and goes on', async () => {
  const { disk, tracker, file } = await core.disk('a', MIB);
  const snapshot = await core.set.create([tracker], { path: ':memory:', limitBytes: MIB });
  await expect(core.set.append(snapshot.id, { path: file, limitBytes: MIB })).rejects.toMatchObject({ code: 'EEXIST' });
  expect(await core.write(disk, 0, 4096, 1)).toBe(0);
  expect(snapshot.images[0]!.corrupted).toBe(0);
});
