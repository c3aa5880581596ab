/** Backups by the command line, and what goes wrong on their way: each with a clear error, and nothing lost. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MIB } from '../../src/util/units.ts';
import { requirePrograms } from '../requirements.ts';
import { DaemonWorld, Program, fill, sameFiles } from './world.ts';

let world: DaemonWorld;
let backups: string;

beforeEach(async () => {
  world = new DaemonWorld();
  backups = world.file('backups');
  await world.start();
});
afterEach(() => world.close());

async function points(): Promise<Array<{ id: string; kind: string; bytesRead: number; reason: string }>> {
  const { disks } = (await world.json('backups', backups)) as { disks: Array<{ points: never[] }> };
  return disks.flatMap((disk) => disk.points);
}

async function restored(disk: string, point: string): Promise<string> {
  const file = world.file(`${point}.raw`);
  await world.json('restore', backups, '--disk', disk, '--point', point, '--to', file);
  return file;
}

function leftovers(): string[] {
  return fs.readdirSync(backups, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.partial'));
}

/** Starts a backup, and waits until it writes. */
async function underWay(disk: string): Promise<Program> {
  const backup = new Program(['backup', disk, '--to', backups, '--dir', world.dir]);
  const directory = path.join(backups, disk);
  for (; backup.running; await sleep(5)) {
    const names = fs.existsSync(directory) ? fs.readdirSync(directory) : [];
    const partial = names.find((name) => name.endsWith('.qcow2.partial'));
    if (
      partial !== undefined &&
      (fs.statSync(path.join(directory, partial), { throwIfNoEntry: false })?.size ?? 0) > MIB
    )
      return backup;
  }
  throw new Error(`the backup is over: ${backup.stderr}`);
}

describe('the whole way', () => {
  it('full, incremental, differential, across kill -9, restored byte for byte, verified, pruned, mounted', async () => {
    const image = world.image('vm.img', 64 * MIB, 8 * MIB);
    const { uri } = await world.client.attach({ path: image });
    const states: string[] = [];
    const keep = (): void => {
      const copy = world.file(`state${states.length}`);
      fs.copyFileSync(image, copy);
      states.push(copy);
    };
    const run = async (...flags: string[]): Promise<string> => {
      const text = await world.cli('backup', 'vm', '--to', backups, ...flags);
      expect(text).toMatchObject({ code: 0, stderr: '' });
      keep();
      return text.stdout;
    };

    expect(await run()).toMatch(/^vm: \S+, full \(first restore point of this disk\): read 8\.00 MiB, stored .* in /);
    await fill(uri, 20 * MIB, 64 * 1024, 5);
    expect(await run()).toMatch(/incremental \(changes since .*\): read 64\.0 KiB/);
    await fill(uri, 0, 64 * 1024, 6);
    await world.stop('SIGKILL');
    await world.start();
    expect(await run()).toMatch(/incremental .*read 64\.0 KiB/);
    await fill(uri, 40 * MIB, 64 * 1024, 7);
    expect(await run('--differential')).toMatch(/differential \(changes since the full .*read 192 KiB/);
    expect(await run('--full')).toMatch(/full \(asked for\)/);

    const made = await points();
    expect(made.map(({ kind }) => kind)).toEqual(['full', 'incremental', 'incremental', 'differential', 'full']);
    for (const [index, { id }] of made.entries())
      expect(sameFiles(await restored('vm', id), states[index]!)).toBe(true);
    expect((await world.cli('verify', backups)).stdout).toMatch(/^5 restore points are good/);

    expect((await world.cli('prune', backups, '--keep-last', '2')).stdout).toMatch(/3 points removed/);
    expect((await points()).map(({ id }) => id)).toEqual(made.slice(3).map(({ id }) => id));
    expect((await world.json('verify', backups))['sound']).toBe(true);

    const { stdout } = await world.cli('mount', backups, '--disk', 'vm', '--point', made[3]!.id);
    const mounted = stdout.trim();
    await fill(mounted, 0, MIB, 9);
    expect(await world.client.disk('vm-mount')).toMatchObject({ kind: 'mount', point: made[3]!.id, size: 64 * MIB });
    expect((await world.cli('unmount', 'vm-mount')).code).toBe(0);
    expect((await world.json('verify', backups))['sound']).toBe(true);
    expect(fs.readdirSync(world.dir).filter((name) => name.startsWith('.overlay'))).toEqual([]);
    expect(await world.client.snapshots()).toEqual([]);
  });

  it('of several disks, at one instant', async () => {
    await world.client.attach({ path: world.image('a.img', 4 * MIB, MIB) });
    await world.client.attach({ path: world.image('b.img', 4 * MIB, MIB) });
    const { code, stdout } = await world.cli('backup', 'a', 'b', '--to', backups, '--json');
    const lines = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { disk: string; snapshot: string });
    expect([code, lines.map(({ disk }) => disk)]).toEqual([0, ['a', 'b']]);
    expect(lines[0]!.snapshot).toBe(lines[1]!.snapshot);
  });

  it('is full, and says why, when the history began anew', async () => {
    const image = world.image('vm.img', 4 * MIB, MIB);
    await world.client.attach({ path: image });
    await world.json('backup', 'vm', '--to', backups);
    await world.client.detach('vm');
    await world.client.attach({ path: image });
    const { stdout } = await world.cli('backup', 'vm', '--to', backups);
    expect(stdout).toMatch(/full \(the disk's change history began anew/);
  });
});

describe('a backup fails cleanly', () => {
  it('when its snapshot ran out of space; the disk and the points are untouched', async () => {
    const { uri } = await world.client.attach({ path: world.image('vm.img', 32 * MIB, 16 * MIB) });
    await world.json('backup', 'vm', '--to', backups);
    await fill(uri, 0, 8 * MIB, 2);
    const { id } = (await world.json('snapshot', 'create', 'vm', '--limit', '1M', '--storage', world.directory)) as {
      id: string;
    };
    const follower = new Program(['snapshot', 'events', id, '--follow', '--json', '--dir', world.dir]);
    await fill(uri, 0, 8 * MIB, 3);

    const failed = await world.cli('backup', 'vm', '--to', backups, '--snapshot', id);
    expect(failed.code).toBe(7);
    expect(failed.stderr).toMatch(/^blksnap: .*earlier restore points are untouched.*give it more with --limit/);
    expect((await points()).length).toBe(1);
    expect(leftovers()).toEqual([]);
    expect((await world.cli('verify', backups)).code).toBe(0);

    expect((await world.cli('snapshot', 'list')).stdout).toMatch(/vm \(ENOSPC\)/);
    expect((await world.cli('snapshot', 'events', id)).stdout).toMatch(
      /no space: 1\.00 MiB of 1\.00 MiB used[^]*image of disk "vm" lost: ENOSPC/,
    );
    await expect.poll(() => follower.stdout).toMatch(/corrupted/);
    await world.json('snapshot', 'destroy', id.slice(0, 8));
    const { code, stdout } = await follower.ended();
    const codes = stdout
      .trim()
      .split('\n')
      .map((line) => (JSON.parse(line) as { code: string }).code);
    expect([code, codes.slice(-2)]).toEqual([0, ['noSpace', 'corrupted']]);

    const { stdout: next } = await world.cli('backup', 'vm', '--to', backups);
    expect(next).toMatch(/incremental .*read 8\.00 MiB/);
    expect(sameFiles(await restored('vm', (await points())[1]!.id), world.file('vm.img'))).toBe(true);
  });

  it.each(['SIGINT', 'SIGTERM'] as const)('on %s: the snapshot goes, nothing is left behind', async (signal) => {
    await world.client.attach({ path: world.image('vm.img', 1024 * MIB, 768 * MIB) });
    const backup = await underWay('vm');
    const { code, stderr } = await backup.signal(signal);
    expect([code, stderr]).toEqual([130, expect.stringMatching(/cancel/i)]);
    expect(await world.client.snapshots()).toEqual([]);
    expect(leftovers()).toEqual([]);
    expect(await points()).toEqual([]);
  });

  it('when it is killed itself: its snapshot has a lease, and nobody renews it; the next one is good', async () => {
    await world.client.attach({ path: world.image('vm.img', 1024 * MIB, 768 * MIB) });
    const backup = await underWay('vm');
    await backup.signal('SIGKILL');
    const [snapshot] = await world.client.snapshots();
    expect(snapshot?.leaseMs).toBe(60_000);
    expect((await world.cli('backup', 'vm', '--to', backups)).code).toBe(0);
    expect(leftovers()).toEqual([]);
  });

  it('when the daemon is killed; the next one is good', async () => {
    await world.client.attach({ path: world.image('vm.img', 1024 * MIB, 768 * MIB) });
    const backup = await underWay('vm');
    await world.stop('SIGKILL');
    const { code, stderr } = await backup.ended();
    expect(code).toBe(1);
    expect(stderr).toMatch(/earlier restore points are untouched/);
    expect(await points()).toEqual([]);
    await world.start();
    expect((await world.cli('backup', 'vm', '--to', backups)).code).toBe(0);
    expect(leftovers()).toEqual([]);
  });

  it('in the directory of another disk of the same name', async () => {
    await world.client.attach({ path: world.image('vm.img', MIB) });
    await world.json('backup', 'vm', '--to', backups);
    await world.client.detach('vm');
    await world.client.attach({ path: world.image('other.img', MIB), name: 'vm' });
    const { code, stderr } = await world.cli('backup', 'vm', '--to', backups);
    expect([code, stderr]).toEqual([2, expect.stringMatching(/another disk.*give another directory/)]);
    expect((await points()).length).toBe(1);
    expect(await world.client.snapshots()).toEqual([]);
  });

  it('of a disk that is not there, and into what is no directory', async () => {
    expect((await world.cli('backup', 'none', '--to', backups)).code).toBe(5);
    await world.client.attach({ path: world.image('vm.img', MIB) });
    const file = world.image('file', 512);
    expect((await world.cli('backup', 'vm', '--to', file)).stderr).toMatch(/is there and no directory/);
    expect((await world.cli('backup', 'vm', '--to', '/proc/none')).code).toBe(5);
    expect((await world.cli('backup', 'vm', '--to', backups, '--full', '--differential')).code).toBe(2);
    expect((await world.cli('backup', 'vm', '--to', backups, '--snapshot', 'none')).code).toBe(5);
    expect((await world.cli('backup', 'vm', '--to', backups, '--storage', '/nonexistent/x')).code).toBe(5);
    expect(await world.client.snapshots()).toEqual([]);
  });
});

describe('a damaged restore point', () => {
  it('is found, named with its place, not restored unless forced, and replaced by a full', async () => {
    await world.client.attach({ path: world.image('vm.img', 8 * MIB, 4 * MIB) });
    await world.json('backup', 'vm', '--to', backups);
    const [point] = await points();
    const file = path.join(backups, 'vm', `${point!.id}.qcow2`);
    const fd = fs.openSync(file, 'r+');
    fs.writeSync(fd, Buffer.from('damage'), 0, 6, fs.fstatSync(fd).size - MIB);
    fs.closeSync(fd);

    const verified = await world.cli('verify', backups);
    expect(verified.code).toBe(4);
    expect(verified.stderr).toContain(`"${file}", bytes `);
    expect(verified.stderr).toContain(`Points that cannot be restored: ${point!.id} of vm`);
    expect(JSON.parse((await world.cli('verify', backups, '--json')).stdout)).toMatchObject({ sound: false });

    const target = world.file('target.raw');
    const refused = await world.cli('restore', backups, '--disk', 'vm', '--to', target);
    expect([refused.code, fs.existsSync(target)]).toEqual([4, false]);
    const forced = await world.cli('restore', backups, '--disk', 'vm', '--to', target, '--force');
    expect([forced.code, fs.statSync(target).size]).toEqual([0, 8 * MIB]);
    expect(forced.stdout).toMatch(/damaged, restored as it is/);
  });

  it('is not written over what is there, nor found where there is none', async () => {
    await world.client.attach({ path: world.image('vm.img', MIB) });
    await world.json('backup', 'vm', '--to', backups);
    const target = world.image('target.raw', 2 * MIB, MIB);
    const args = ['restore', backups, '--disk', 'vm', '--to', target];
    expect((await world.cli(...args)).code).toBe(6);
    expect((await world.cli(...args, '--overwrite')).code).toBe(0);
    expect((await world.cli(...args, '--point', 'none')).code).toBe(5);
    expect((await world.cli('restore', backups, '--disk', 'none', '--to', target)).code).toBe(5);
    expect((await world.cli('verify', world.directory)).code).toBe(5);
    expect((await world.cli('mount', backups, '--disk', 'none')).code).toBe(5);
    expect((await world.cli('prune', backups, '--keep-last', '0')).code).toBe(2);
  });
});

describe('a disk that QEMU has open', () => {
  it('is not attached; an attached one is not opened by QEMU', async (context) => {
    requirePrograms(context, 'qemu-io', 'qemu-img');
    const image = world.image('vm.img', MIB);
    const qemu = spawn('qemu-io', ['-f', 'raw', image], { stdio: ['pipe', 'pipe', 'ignore'] });
    await once(qemu.stdout, 'data');
    const { code, stderr } = await world.cli('attach', image);
    expect([code, stderr]).toEqual([6, expect.stringMatching(/in use|another program|locked/i)]);
    qemu.stdin.end('quit\n');
    await once(qemu, 'exit');

    expect((await world.cli('attach', image)).code).toBe(0);
    const info = spawn('qemu-io', ['-f', 'raw', '-c', 'read 0 512', image], { stdio: ['ignore', 'ignore', 'pipe'] });
    let said = '';
    info.stderr.on('data', (data: Buffer) => (said += data.toString()));
    const [status] = (await once(info, 'close')) as [number];
    expect([status === 0, said]).toEqual([false, expect.stringMatching(/lock/)]);
  });
});
