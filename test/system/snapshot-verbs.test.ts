/** Parameters, freeze hooks, more room, and another size, as a person asks for them on the command line. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { CbtView, DiskView, SnapshotView, StatusView } from '../../src/api/client.ts';
import { Embedded } from '../../src/blksnap/embedded.ts';
import { requirePrograms } from '../requirements.ts';
import { DaemonUnderTest } from './daemon-under-test.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
let daemon: DaemonUnderTest;

beforeEach(() => {
  daemon = new DaemonUnderTest();
});
afterEach(() => daemon.dispose());

async function write(offset: number, data: Buffer): Promise<void> {
  const embedded = await Embedded.open();
  await (await embedded.openExport(daemon.uri('vm'))).write(offset, data);
  await embedded.close();
}

test('parameters are taken, shown, and refused by name', async () => {
  await daemon.start('--tracking-block-min-shift', '20', '--copy-memory', '8M', '--max-snapshots-per-disk', '1');
  const status = await daemon.json<StatusView>('status');
  expect(status.parameters).toMatchObject({
    trackingBlockMinShift: 20,
    copyMemoryBytes: 8 * MIB,
    maxSnapshotsPerDisk: 1,
  });
  expect(await daemon.cli('status')).toMatch(/memory +128 MiB, of it 8\.00 MiB for copies/);
  await daemon.disk('vm', 8 * MIB);
  expect((await daemon.json<CbtView>('cbt', 'vm')).blockSize).toBe(MIB);
  await daemon.cli('snapshot', 'create', 'vm');
  await expect(daemon.cli('snapshot', 'create', 'vm')).rejects.toMatchObject({
    stderr: expect.stringMatching(/1 of it are held, as many as --max-snapshots-per-disk allows/),
  });
  await expect(daemon.cli('daemon', '--copy-memory', '1G')).rejects.toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/--copy-memory 1\.00 GiB: want at most half/),
  });
});

test('a copy unit of 64 KiB is saved as a whole by the first write, and the image is right', async () => {
  await daemon.start('--copy-unit', '64K');
  expect((await daemon.json<StatusView>('status')).parameters.copyUnitBytes).toBe(64 * KIB);
  expect(await daemon.cli('status')).toMatch(/copy unit +64\.0 KiB/);
  const before = fs.readFileSync(await daemon.disk('vm', 8 * MIB));
  const { id } = await daemon.json<SnapshotView>('snapshot', 'create', 'vm');
  const embedded = await Embedded.open();
  const disk = await embedded.openExport(daemon.uri('vm'));
  const copied = async (): Promise<number> => (await daemon.json<StatusView>('status')).copies.copiedChunks;
  await disk.write(20 * KIB, Buffer.alloc(4 * KIB, 1));
  await expect.poll(copied).toBe(16);
  await disk.write(60 * KIB, Buffer.alloc(4 * KIB, 2));
  // Its unit is a hole.
  await disk.write(100 * KIB, Buffer.alloc(4 * KIB, 3));
  const image = await embedded.openExport(daemon.uri(`vm@${id}`));
  expect((await image.read(0, before.length)).equals(before)).toBe(true);
  expect(await copied()).toBe(16);
  await embedded.close();
  await expect(daemon.cli('daemon', '--copy-unit', '48K')).rejects.toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/--copy-unit 48\.0 KiB: want a power of two from 4\.00 KiB to 1\.00 MiB/),
  });
});

test('freeze hooks run around the take; a freeze that fails means no snapshot', async () => {
  await daemon.start();
  await daemon.disk('vm', 8 * MIB);
  const log = daemon.path('log');
  const say = `echo $BLKSNAP_HOOK $BLKSNAP_DISKS >> ${log}`;
  const snapshot = await daemon.json<SnapshotView>('snapshot', 'create', 'vm', '--freeze', say, '--thaw', say);
  expect(fs.readFileSync(log, 'utf8')).toBe('freeze vm\nthaw vm\n');
  expect(snapshot.freeze!.frozenMs).toBeGreaterThan(snapshot.heldMs);
  expect(await daemon.cli('snapshot', 'show', snapshot.id)).toMatch(/frozen for/);
  await expect(daemon.cli('snapshot', 'create', 'vm', '--freeze', 'exit 1', '--thaw', say)).rejects.toMatchObject({
    stderr: expect.stringMatching(/Cannot freeze: "exit 1" ended with 1/),
  });
  expect(fs.readFileSync(log, 'utf8')).toBe('freeze vm\nthaw vm\nthaw vm\n');
  expect((await daemon.json<{ snapshots: unknown[] }>('snapshot', 'list')).snapshots).toHaveLength(1);
  await expect(daemon.cli('snapshot', 'create', 'vm', '--freeze', say)).rejects.toMatchObject({ code: 2 });
  await daemon.cli('backup', 'vm', '--to', daemon.path('backups'), '--freeze', say, '--thaw', say);
  expect(fs.readFileSync(log, 'utf8')).toBe('freeze vm\nthaw vm\nthaw vm\nfreeze vm\nthaw vm\n');
});

test('a held snapshot tells what it keeps, and gets more room', async () => {
  await daemon.start();
  await daemon.disk('vm', 8 * MIB);
  const { id } = await daemon.json<SnapshotView>('snapshot', 'create', 'vm', '--storage', ':memory:', '--limit', '1M');
  const used = async (): Promise<unknown> => {
    const { snapshots } = await daemon.json<{ snapshots: SnapshotView[] }>('snapshot', 'list');
    return [snapshots.map(({ usedBytes }) => usedBytes), (await daemon.json<SnapshotView>('snapshot', 'show', id)).usedBytes]; // prettier-ignore
  };
  expect(await used()).toEqual([[0], 0]);
  await write(0, Buffer.alloc(48 * KIB, 1));
  expect(await used()).toEqual([[48 * KIB], 48 * KIB]);
  expect(await daemon.cli('snapshot', 'list')).toMatch(
    /^ID +TAKEN +KEPT +LIMIT +DISKS\n.* 48\.0 KiB +1\.00 MiB +vm\n$/,
  );
  expect(await daemon.cli('snapshot', 'show', id)).toMatch(/\nkept +48\.0 KiB\nlimit +1\.00 MiB\n/);
  expect(await daemon.cli('snapshot', 'append', id, '--limit', '2M')).toBe('2.00 MiB\n');
  expect(await daemon.cli('snapshot', 'append', id, '--storage', daemon.directory, '--limit', '3M')).toBe('5.00 MiB\n');
  const { places, limitBytes } = await daemon.json<SnapshotView>('snapshot', 'show', id);
  expect(limitBytes).toBe(5 * MIB);
  expect(places).toEqual([
    { path: ':memory:', limitBytes: 2 * MIB },
    { path: daemon.directory, limitBytes: 3 * MIB },
  ]);
  await expect(daemon.cli('snapshot', 'append', id)).rejects.toMatchObject({ code: 2 });
});

test('a disk grows while it is served: clients see it when they connect again', async (context) => {
  requirePrograms(context, 'nbdinfo');
  await daemon.start();
  const file = await daemon.disk('vm', 8 * MIB);
  const sizeNow = async (name = 'vm'): Promise<number> =>
    Number((await promisify(execFile)('nbdinfo', ['--size', daemon.uri(name)])).stdout);
  const embedded = await Embedded.open();
  const connected = await embedded.openExport(daemon.uri('vm'));
  expect([connected.size, await sizeNow()]).toEqual([8 * MIB, 8 * MIB]);
  const { id } = await daemon.json<SnapshotView>('snapshot', 'create', 'vm');

  fs.truncateSync(file, 16 * MIB);
  expect(await sizeNow()).toBe(8 * MIB);
  expect(await daemon.cli('resize', 'vm')).toBe('16.0 MiB\n');
  expect([await sizeNow(), await sizeNow(`vm@${id}`)]).toEqual([16 * MIB, 8 * MIB]);
  // Who was connected goes on, with the size it was told.
  await connected.write(8 * MIB - 4 * KIB, Buffer.alloc(4 * KIB, 5));
  const again = await embedded.openExport(daemon.uri('vm'));
  await again.write(16 * MIB - 4 * KIB, Buffer.alloc(4 * KIB, 6));
  expect([connected.size, again.size]).toEqual([8 * MIB, 16 * MIB]);
  expect((await again.read(8 * MIB - 4 * KIB, 1))[0]).toBe(5);
  await embedded.close();
  expect(fs.readFileSync(file)[16 * MIB - 1]).toBe(6);
  const disks = await daemon.json<{ disks: DiskView[] }>('list');
  expect(disks.disks[0]).toMatchObject({ size: 16 * MIB, cbt: { reason: expect.stringMatching(/was resized/) } });
});
