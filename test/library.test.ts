/** The package as a program uses it: the examples of its doc comments, run as they are written; sessions
 *  against a daemon; and disks, snapshots and images in the program's own process. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

import { ChangeReader, Client, Embedded, SnapshotSession } from '../src/index.ts';
import { Prng } from '../src/util/prng.ts';
import { MIB } from '../src/util/units.ts';
import { DaemonUnderTest } from './system/daemon-under-test.ts';

const run = promisify(execFile);
const ROOT = path.join(import.meta.dirname, '..');
const SIZE = 8 * MIB;
/** Of a program that hangs: it is to end before the test's own limit leaves it behind. */
const HANG_MS = 240_000;
/** Files with examples, and what each prints. */
const EXAMPLES: ReadonlyArray<readonly [file: string, prints: RegExp]> = [
  ['src/api/session.ts', /^nbd\+unix:\/\/\/disk%40\S+\n$/],
  ['src/api/change-reader.ts', /^\[ \{ offset: 0, length: 65536 \} \]\n$/],
  ['src/blksnap/embedded.ts', /^old \n$/],
];

let daemon: DaemonUnderTest;
let client: Client;

beforeAll(async () => {
  daemon = new DaemonUnderTest();
  await daemon.start();
  client = new Client({ dir: daemon.state });
});
afterAll(() => daemon.dispose());

function exampleIn(file: string): string {
  const text = fs.readFileSync(path.join(ROOT, file), 'utf8');
  const block = /^ \* {2}```ts\n([\s\S]*?)^ \* {2}```$/m.exec(text)?.[1] ?? '';
  return block.replaceAll(/^ \* ? ?/gm, '').replaceAll("'blksnap'", `'${path.join(ROOT, 'src/index.ts')}'`);
}

function image(name: string, fill = 0): string {
  const file = daemon.path(name);
  fs.writeFileSync(file, Buffer.alloc(SIZE, fill));
  return file;
}

describe('the examples of the doc comments', () => {
  it.each(EXAMPLES)('%s', async (file, prints) => {
    const code = exampleIn(file);
    expect(code).toContain('import {');
    const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-example-'));
    try {
      fs.writeFileSync(path.join(directory, 'disk.img'), Buffer.alloc(SIZE));
      fs.writeFileSync(path.join(directory, 'example.mts'), code);
      const words = ['--import', import.meta.resolve('tsx'), 'example.mts'];
      const env = { ...process.env, BLKSNAP_DIR: daemon.state };
      const { stdout, stderr } = await run(process.execPath, words, { cwd: directory, env, timeout: HANG_MS });
      expect(stderr).toBe('');
      expect(stdout).toMatch(prints);
    } finally {
      fs.rmSync(directory, { recursive: true });
    }
  });

  it('is what the built package exports', async () => {
    const code = "import('blksnap').then((all) => console.log(Object.keys(all).sort().join(' ')))";
    const { stdout } = await run(process.execPath, ['-e', code], { cwd: ROOT });
    const sources = await import('../src/index.ts');
    expect(stdout.trim()).toBe(Object.keys(sources).toSorted().join(' '));
  });
});

describe('a session', () => {
  it('holds a snapshot, hears its events, and takes it with it', async () => {
    const { name } = await client.attach({ path: image('session.img', 9) });
    const session = await SnapshotSession.open(client, { disks: [name], storage: daemon.directory, limitBytes: MIB });
    expect(() => session.image('none')).toThrow(/not in snapshot/);
    session.assertGood();
    const embedded = await Embedded.open();
    const live = await embedded.openExport(daemon.uri(name));
    const before = await embedded.openExport(session.image(name).uri);
    await live.write(0, Buffer.alloc(64 * 1024, 1));
    expect(await before.read(0, 3)).toEqual(Buffer.alloc(3, 9));
    const broken = (async () => {
      while (!session.events.some(({ code }) => code === 'corrupted')) await session.changed();
    })();
    await live.write(MIB, Buffer.alloc(4 * MIB, 2));
    await broken;
    expect(() => session.assertGood()).toThrow(/is lost: ENOSPC/);
    await embedded.close();
    await session.close();
    await session.close();
    await session[Symbol.asyncDispose]();
    expect(await client.snapshots()).toEqual([]);
    await client.detach(name);
  });

  it('ends well when somebody else has destroyed its snapshot', async () => {
    const { name } = await client.attach({ path: image('other.img') });
    const session = await SnapshotSession.open(client, { disks: [name] });
    await client.destroySnapshot(session.id);
    await session.close();
    await client.detach(name);
  });
});

it('a change reader knows a history that is gone', async () => {
  const { name } = await client.attach({ path: image('changes.img') });
  await client.markDirty(name, { ranges: [{ offset: SIZE - 512, length: 512 }] });
  const changes = await ChangeReader.open(client, name);
  expect(changes.since(changes.info.generationId, 0)).toEqual([{ offset: SIZE - 65_536, length: 65_536 }]);
  expect(changes.since(changes.info.generationId, 1)).toEqual([]);
  expect(changes.since('another', 0)).toBeNull();
  await client.detach(name);
});

describe.each(['uring', 'portable'] as const)('embedded on the %s driver', (driver) => {
  it('keeps images as they were while disks are written', async (context) => {
    const embedded = await Embedded.open({ driver }).catch((cause: unknown) => context.skip(String(cause)));
    const random = new Prng(7);
    const disks = await Promise.all(
      ['a', 'b'].map((name) => embedded.openDisk(image(`${name}-${driver}.img`), { name })),
    );
    const models = disks.map(() => Buffer.alloc(SIZE));
    const write = async (which: number): Promise<void> => {
      const length = (1 + random.below(64)) * 512;
      const offset = random.below((SIZE - length) / 512) * 512;
      const data = Buffer.alloc(length, 1 + random.below(255));
      data.copy(models[which]!, offset);
      await disks[which]!.write(offset, data);
    };
    for (let i = 0; i < 50; i++) await write(i % 2);
    const first = await embedded.snapshot(disks);
    const then = models.map((model) => Buffer.from(model));
    for (let i = 0; i < 50; i++) await write(i % 2);
    const second = await embedded.snapshot([disks[1]!], { storage: daemon.directory });
    const later = Buffer.from(models[1]!);
    for (let i = 0; i < 50; i++) await write(i % 2);
    for (const [which, disk] of disks.entries()) {
      expect((await first.image(disk).read(0, SIZE)).equals(then[which]!)).toBe(true);
      expect((await disk.read(0, SIZE)).equals(models[which]!)).toBe(true);
    }
    expect((await second.image(disks[1]!).read(0, SIZE)).equals(later)).toBe(true);
    const number = first.snapshot.image('b')!.changeNumber;
    const changed = second.changedSince(disks[1]!, number);
    const patched = Buffer.from(then[1]!);
    for (const { offset, length } of changed) later.copy(patched, offset, offset, offset + length);
    expect(patched.equals(later)).toBe(true);
    expect(() => second.image(disks[0]!)).toThrow(/not in snapshot/);
    await disks[0]!.discard(0, 4096);
    await disks[0]!.flush();
    expect(await disks[0]!.read(1, 100)).toEqual(Buffer.alloc(100));
    await expect(disks[0]!.read(SIZE, 1)).rejects.toMatchObject({ code: 'EINVAL' });
    await expect(disks[0]!.write(1, Buffer.alloc(512))).rejects.toThrow(/want multiples of 512/);
    await expect(embedded.openDisk(daemon.path('none'))).rejects.toMatchObject({ code: 'ENOENT' });
    await second.destroy();
    await embedded.close();
  });
});
