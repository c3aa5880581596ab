/** The kernel module's console tool as scripts know it: every verb, flag and printed line, on a real daemon. */

import { execFile, execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';

import { KIB, MIB } from '../src/util/units.ts';
import { isZero } from '../src/util/zeroes.ts';
import { requirePrograms, requireRoot } from './requirements.ts';
import { DaemonUnderTest } from './system/daemon-under-test.ts';

const BLKSNAP = path.join(import.meta.dirname, '../bin/blksnap');
const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\n$/;
const SIZE = 16 * MIB;
const PATIENCE = { timeout: 60_000, interval: 50 };
let daemon: DaemonUnderTest;
let first: string;
let second: string;

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

interface Started {
  readonly pid: number;
  readonly ended: Promise<Outcome>;
  /** What it has printed so far. */
  said(): string;
}

function started(...words: string[]): Started {
  const env = { ...process.env, BLKSNAP_DIR: daemon.state };
  let end!: (outcome: Outcome) => void;
  const ended = new Promise<Outcome>((resolve) => (end = resolve));
  const child = execFile(BLKSNAP, words, { env }, (cause, stdout, stderr) => {
    end({ code: typeof cause?.code === 'number' ? cause.code : 0, stdout, stderr });
  });
  let said = '';
  child.stdout?.on('data', (text: string) => (said += text));
  return { pid: child.pid!, ended, said: () => said };
}

async function blksnap(...words: string[]): Promise<Outcome> {
  return await started(...words).ended;
}

/** Beside its standard streams: it talks to the daemon. */
function hasSocket(pid: number): boolean {
  const directory = `/proc/${pid}/fd`;
  const sockets = fs.readdirSync(directory).filter((fd) => {
    try {
      return Number(fd) > 2 && fs.readlinkSync(`${directory}/${fd}`).startsWith('socket:');
    } catch {
      return false;
    }
  });
  return sockets.length > 0;
}

/** What it prints; fails the test unless it succeeds and complains of nothing. */
async function says(...words: string[]): Promise<string> {
  const { code, stdout, stderr } = await blksnap(...words);
  expect({ words, code, stderr }).toEqual({ words, code: 0, stderr: '' });
  return stdout;
}

function image(name: string): string {
  const file = daemon.path(name);
  fs.writeFileSync(file, Buffer.alloc(SIZE, 7));
  return file;
}

async function write(disk: string, offset: number, length: number): Promise<void> {
  await promisify(execFile)('qemu-io', ['-f', 'raw', '-c', `write -P 0x5a ${offset} ${length}`, daemon.uri(disk)]);
}

beforeAll(async () => {
  daemon = new DaemonUnderTest();
  await daemon.start();
  first = image('first.img');
  second = image('second.img');
});
afterAll(() => daemon.dispose());

describe.sequential('the console tool', () => {
  it('attach', async () => {
    expect(await says('attach', '--device', first)).toBe('Attached successfully\n');
    expect(await says('attach', `--device=${first}`)).toBe('Already was attached\n');
    expect(await says('attach', '-d', 'first')).toBe('Already was attached\n');
    expect(JSON.parse(await says('attach', '-d', first, '--json'))).toEqual({
      attached: [{ device: first, already: true }],
    });
    // The program's own form keeps its own manners.
    expect(await blksnap('attach', first)).toMatchObject({
      code: 6,
      stdout: '',
      stderr: expect.stringContaining('attached already'),
    });
    expect(await blksnap('attach', '-d', daemon.path('none'))).toMatchObject({ code: 5, stdout: '' });
    expect(await blksnap('attach')).toMatchObject({ code: 2, stdout: '' });
  });

  it('cbtinfo', async () => {
    const lines = (await says('cbtinfo', '-d', first)).split('\n');
    const [blockSize, capacity, count, generation, number] = lines;
    expect([blockSize, capacity, count]).toEqual(['block_size=65536', `device_capacity=${SIZE}`, 'block_count=256']);
    expect(generation).toMatch(/^generation_id=[0-9a-f-]{36}$/);
    expect(number).toBe('changes_number=1');
    expect(lines).toHaveLength(6);
    expect(JSON.parse(await says('cbtinfo', '--device=first', '--json'))).toMatchObject({
      block_size: 65_536,
      changes_number: 1,
    });
    expect(await blksnap('cbtinfo', '-d', 'none')).toMatchObject({
      code: 5,
      stderr: expect.stringContaining('No disk "none"'),
    });
    expect(await blksnap('cbtinfo')).toMatchObject({ code: 2 });
    expect(await blksnap('cbtinfo', '-d', 'first', 'second')).toMatchObject({ code: 2 });
  });

  it('markdirtyblock and readcbtmap', async () => {
    const map = daemon.path('map');
    expect(await says('markdirtyblock', '-d', first, '--ranges=0:8', '255:2', '32640:128')).toBe('');
    expect(await says('readcbtmap', '--device', 'first', '--file', map)).toBe('');
    const marked = [...fs.readFileSync(map).entries()].filter(([, value]) => value !== 0);
    expect(marked).toEqual([[0, 1], [1, 1], [2, 1], [255, 1]]); // prettier-ignore
    expect(JSON.parse(await says('readcbtmap', '-d', 'first', '-f', map, '--json'))).toEqual({ file: map, bytes: 256 });
    expect(await blksnap('markdirtyblock', '-d', 'first', '-r', '8')).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('SECTOR:COUNT'),
    });
    expect(await blksnap('markdirtyblock', '-d', 'first', '-r', '32768:1')).toMatchObject({ code: 2 });
    expect(await blksnap('markdirtyblock', '-d', 'first')).toMatchObject({ code: 2 });
  });

  it('snapshot_create, _add, _take, _info, _collect, _destroy', async () => {
    const id = await says('snapshot_create', '-d', first, '-f', daemon.directory, '-l', '8M');
    expect(id).toMatch(UUID);
    const word = id.trim();
    expect(await says('snapshot_info', '-d', first)).toBe('error_code=0\nimage=\n');
    // Attaches what was not.
    expect(await says('snapshot_add', '--id', word, `--device=${second}`)).toBe('');
    expect(await says('attach', '-d', second)).toBe('Already was attached\n');
    expect(await blksnap('snapshot_add', '-i', word, '-d', 'second')).toMatchObject({
      code: 6,
      stdout: '',
      stderr: expect.stringContaining('in it already'),
    });
    expect(await says('snapshot_collect')).toBe(id);
    expect(await says('snapshot_take', '-i', word)).toBe('');
    expect(await says('snapshot_collect')).toBe(id);
    const uri = daemon.uri(`first@${word}`);
    expect(await says('snapshot_info', '-d', 'first')).toBe(`error_code=0\nimage=${uri}\n`);
    expect(await says('snapshot_info', '-d', 'first', '--field', 'image')).toBe(`${uri}\n`);
    expect(await says('snapshot_info', '-d', 'first', '--field=error_code')).toBe('0\n');
    expect(await blksnap('snapshot_info', '-d', 'first', '-f', 'size')).toMatchObject({ code: 2 });
    expect(await blksnap('snapshot_take', '-i', word)).toMatchObject({ code: 5 });
    expect(await blksnap('detach', '-d', first)).toMatchObject({ code: 6, stdout: '' });
    expect(JSON.parse(await says('snapshot_collect', '--json'))).toEqual({ ids: [word] });
    expect(await says('snapshot_destroy', '-i', word)).toBe('');
    expect(await says('snapshot_collect')).toBe('');
    expect(await blksnap('snapshot_destroy', '-i', word)).toMatchObject({ code: 5 });
    expect(await blksnap('snapshot_info', '-d', 'first')).toMatchObject({ code: 5 });
  });

  it('snapshot_create takes several devices, and a snapshot that was not taken can go', async () => {
    const id = (await says('snapshot_create', '--device', 'first', 'second')).trim();
    expect(await says('snapshot_destroy', '--id', id)).toBe('');
    expect(await blksnap('snapshot_take', '--id', id)).toMatchObject({ code: 5 });
    expect(await blksnap('snapshot_create', '-d', 'first', 'first')).toMatchObject({ code: 2 });
    const empty = (await says('snapshot_create')).trim();
    expect(await blksnap('snapshot_take', '--id', empty)).toMatchObject({ code: 2 });
    expect(await says('snapshot_destroy', '--id', empty)).toBe('');
  });

  it('snapshot_create takes a preallocated file, and leaves it so', async () => {
    const file = daemon.path('preallocated');
    execFileSync('fallocate', ['--length', '4MiB', file]);
    const id = (await says('snapshot_create', '-d', 'first', '-f', file)).trim();
    await says('snapshot_take', '-i', id);
    await write('first', 0, 6 * MIB);
    expect(await says('snapshot_info', '-d', 'first', '-f', 'error_code')).toBe('0\n');
    await says('snapshot_destroy', '-i', id);
    expect(fs.statSync(file).size).toBe(4 * MIB);
    expect(isZero(fs.readFileSync(file))).toBe(true);
  });

  it.each([
    ['in no directory', 5, () => daemon.path('none/file')],
    ['with content', 6, () => second],
    ['that is no device', 5, () => '/dev/no-such-device'],
    ['of the kernel', 2, () => '/proc/self/mem'],
  ])('snapshot_create refuses a storage %s as the take would', async (_what, code, place) => {
    const content = fs.readFileSync(second);
    expect(await blksnap('snapshot_create', '-d', 'first', '-f', place())).toMatchObject({ code, stdout: '' });
    expect(await blksnap('snapshot', 'create', 'first', '--storage', place())).toMatchObject({ code, stdout: '' });
    expect(await says('snapshot_collect')).toBe('');
    expect(fs.readFileSync(second).equals(content)).toBe(true);
  });

  it('snapshot_waitevent and snapshot_watcher', async (context) => {
    requirePrograms(context, 'qemu-io');
    const id = (await says('snapshot_create', '-d', 'first', '-f', daemon.directory, '--limit=1M')).trim();
    expect(await says('snapshot_waitevent', '-i', id, '-t', '10')).toBe('result=timeout\n');
    await says('snapshot_take', '-i', id);
    expect(await says('snapshot_waitevent', '-i', id, '--timeout=0')).toBe('result=timeout\n');
    const watcher = blksnap('snapshot_watcher', '-i', id);
    await write('first', 0, 4 * MIB);
    const seen: string[] = [];
    while (!/event=corrupted/.test(seen.at(-1) ?? ''))
      seen.push(await says('snapshot_waitevent', '-i', id, '-t', '5000'));
    const names = seen.map((text) => /^result=ok\ntime=\d{19}\nevent=(\w+)\n/.exec(text)?.[1]);
    expect(names.slice(-2)).toEqual(['no_space', 'corrupted']);
    expect(names.slice(0, -2).filter((name) => name !== 'low_free_space')).toEqual([]);
    expect(seen.at(-2)).toMatch(/\nevent=no_space\nrequested_nr_sect=[1-9]\d*\ndevice=first\nerror=-28\n$/);
    expect(seen.at(-1)).toMatch(/\nevent=corrupted\ndevice=first\nerror=-28\n$/);
    expect(await says('snapshot_waitevent', '-i', id, '-t', '0')).toBe('result=timeout\n');
    expect(await says('snapshot_info', '-d', 'first', '-f', 'error_code')).toBe('-28\n');
    const watched = await watcher;
    expect(watched.code).toBe(1);
    expect(watched.stdout).toMatch(/event=no_space .*\n.*event=corrupted device=first error=-28\n$/);
    await says('snapshot_destroy', '-i', id);
    expect(await says('snapshot_waitevent', '-i', id, '-t', '0')).toBe('result=not found\n');
    expect(await blksnap('snapshot_watcher', '-i', id)).toMatchObject({ code: 5 });
  });

  it('snapshot_watcher ends with its snapshot, snapshot_waitevent by a signal', async (context) => {
    requirePrograms(context, 'qemu-io');
    const id = (await says('snapshot_create', '-d', 'first', '-f', daemon.directory, '--limit=1M')).trim();
    await says('snapshot_take', '-i', id);
    const watcher = started('snapshot_watcher', '-i', id);
    // Once it has told of something it watches; one that comes after the end finds no snapshot.
    await write('first', 0, MIB - 64 * KIB);
    await vi.waitFor(() => expect(watcher.said()).toMatch(/event=low_free_space requested_nr_sect=512\n$/), PATIENCE);
    expect(await says('snapshot_waitevent', '-i', id, '-t', '0')).toMatch(
      /event=low_free_space\nrequested_nr_sect=512\n$/,
    );

    const waiting = started('snapshot_waitevent', '-i', id, '-t', '600000');
    await vi.waitFor(() => expect(hasSocket(waiting.pid)).toBe(true), PATIENCE);
    process.kill(waiting.pid, 'SIGINT');
    expect(await waiting.ended).toEqual({ code: 0, stdout: 'result=interrupted\n', stderr: '' });

    await says('snapshot_destroy', '-i', id);
    expect(await watcher.ended).toEqual({ code: 0, stdout: watcher.said(), stderr: '' });
  });

  it('every verb prints JSON with --json', async (context) => {
    requirePrograms(context, 'qemu-io');
    const json = async (...line: string[]): Promise<unknown> => JSON.parse(await says(...line, '--json'));
    expect(await json('version')).toMatchObject({ version: expect.any(String) });
    expect(await json('attach', '-d', second)).toMatchObject({ attached: [{ device: second }] });
    expect(await json('cbtinfo', '-d', 'second')).toMatchObject({ device_capacity: SIZE });
    const map = daemon.path('json.map');
    expect(await json('readcbtmap', '-d', 'second', '-f', map)).toEqual({ file: map, bytes: 256 });
    expect(await json('markdirtyblock', '-d', 'second', '-r', '0:8')).toEqual(expect.any(Object));
    const created = await json('snapshot_create', '-d', 'first', '-f', daemon.directory, '-l', '1M');
    const { id } = created as { id: string };
    expect(created).toMatchObject({ disks: ['first'] });
    expect(await json('snapshot_add', '-i', id, '-d', 'second')).toMatchObject({ id, disks: ['first', 'second'] });
    expect(await json('snapshot_take', '-i', id)).toMatchObject({ id, images: [{}, {}] });
    expect(await json('snapshot_collect')).toEqual({ ids: [id] });
    expect(await json('snapshot_info', '-d', 'second')).toEqual({
      error_code: 0,
      image: daemon.uri(`second@${id}`),
    });
    expect(await json('snapshot_waitevent', '-i', id, '-t', '0')).toEqual({ result: 'timeout' });
    const watcher = started('snapshot_watcher', '-i', id, '--json');
    // Once it has told of something it watches.
    await write('first', 0, MIB - 64 * KIB);
    await vi.waitFor(() => expect(watcher.said()).toMatch(/\n$/), PATIENCE);
    expect(JSON.parse(watcher.said())).toMatchObject({ code: 'lowSpace' });
    expect(await json('snapshot_waitevent', '-i', id, '-t', '0')).toMatchObject({ result: 'ok', event: {} });
    expect(await json('snapshot_destroy', '-i', id)).toEqual({ destroyed: id });
    expect(await watcher.ended).toEqual({ code: 0, stdout: watcher.said(), stderr: '' });
    expect(await json('detach', '-d', second)).toEqual(expect.any(Object));
    await says('attach', '-d', second);
  });

  it('detach', async () => {
    expect(await says('detach', '--device', first, 'second')).toBe('');
    expect(await blksnap('detach', '-d', first)).toMatchObject({ code: 5 });
    expect(await says('list')).toMatch(/^No disks/);
  });
});

it('markdirtyblock --file marks the blocks of a file, through its loop device', async (context) => {
  requireRoot(context);
  requirePrograms(context, 'mkfs.ext4', 'losetup', 'mount', 'filefrag');
  const disk = image('fs.img');
  const sh = (...words: [string, ...string[]]): { status: number | null; stdout: string } =>
    spawnSync(words[0], words.slice(1), { encoding: 'utf8' });
  expect(sh('mkfs.ext4', '-q', '-F', disk).status).toBe(0);
  const mounted = daemon.path('mnt');
  fs.mkdirSync(mounted);
  let loop = sh('losetup', '--find', '--show', disk).stdout.trim();
  context.skip(loop === '', 'needs a loop device');
  try {
    expect(sh('mount', loop, mounted).status).toBe(0);
    fs.writeFileSync(path.join(mounted, 'database'), Buffer.alloc(300_000, 3));
    // What may write to the file keeps it from being attached: from here on the loop device only reads.
    expect(sh('umount', mounted).status).toBe(0);
    expect(sh('losetup', '-d', loop).status).toBe(0);
    loop = sh('losetup', '--find', '--show', '--read-only', disk).stdout.trim();
    expect(sh('mount', '-o', 'ro', loop, mounted).status).toBe(0);
    await says('attach', '--device', disk);
    expect(await says('markdirtyblock', '--file', path.join(mounted, 'database'))).toBe('');
    const map = daemon.path('fs.map');
    await says('readcbtmap', '-d', disk, '-f', map);
    const marked = new Set(
      [...fs.readFileSync(map).entries()].flatMap(([block, value]) => (value === 0 ? [] : [block])),
    );
    expect(marked).toEqual(blocksWith(disk, 3));
    const elsewhere = image('other.img');
    await says('attach', '--device', elsewhere);
    expect(await blksnap('markdirtyblock', '-d', 'other', '--file', path.join(mounted, 'database'))).toMatchObject({
      code: 2,
    });
    await says('detach', '-d', disk, elsewhere);
  } finally {
    sh('umount', mounted);
    sh('losetup', '-d', loop);
  }
});

/** Tracking blocks that hold a page full of the byte: the file's own. */
function blocksWith(disk: string, byte: number): Set<number> {
  const data = fs.readFileSync(disk);
  const page = Buffer.alloc(4096, byte);
  const found = new Set<number>();
  for (let at = 0; at < data.length; at += 4096) {
    if (data.subarray(at, at + 4096).equals(page)) found.add(Math.floor(at / 65_536));
  }
  return found;
}
