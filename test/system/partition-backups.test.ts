/** Backups of a partition alone and of its whole disk, by the command line: what was written through either is in the next
 *  incremental backup of both, and all restore to the bytes of the image file. */

import { execFile, execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { KIB, MIB } from '../../src/util/units.ts';
import { requirePrograms } from '../requirements.ts';
import { DaemonUnderTest } from './daemon-under-test.ts';

const SECTOR = 512;
/** Partition 2 begins and ends inside tracking blocks, and its start is no multiple of 4 KiB. */
const PLACES: Record<string, readonly [start: number, end: number]> = {
  vm: [0, 16 * MIB],
  'vm/1': [2048 * SECTOR, (2048 + 8192) * SECTOR],
  'vm/2': [12_345 * SECTOR, (12_345 + 8192) * SECTOR],
};
const TABLE = 'label: gpt\nstart=2048,size=8192\nstart=12345,size=8192\n';

interface Told {
  readonly kind: string;
  readonly bytesRead: number;
}

let daemon: DaemonUnderTest;
let image: string;

beforeEach(async () => {
  daemon = new DaemonUnderTest();
  await daemon.start();
});
afterEach(() => daemon.dispose());

async function write(disk: string, value: number, place: string): Promise<void> {
  const words = ['-f', 'raw', '-c', `write -P ${value} ${place}`, '-c', 'flush', daemon.uri(disk)];
  expect((await promisify(execFile)('qemu-io', words)).stdout).toContain('wrote');
}

/** Backs a disk up, restores its newest point, and compares that with the image. */
async function backUp(disk: string): Promise<Told> {
  const backups = daemon.path('backups');
  const { point } = await daemon.json<{ point: Told }>('backup', disk, '--to', backups);
  const restored = daemon.path('restored.raw');
  fs.rmSync(restored, { force: true });
  await daemon.cli('restore', backups, '--disk', disk, '--to', restored);
  const [start, end] = PLACES[disk]!;
  expect(fs.readFileSync(restored).equals(fs.readFileSync(image).subarray(start, end)), `${disk} restored`).toBe(true);
  return point;
}

test('a partition alone and the whole are backed up, each with what was written through the other', async (context) => {
  requirePrograms(context, 'qemu-io', 'sfdisk');
  image = daemon.path('vm.img');
  fs.writeFileSync(image, Buffer.alloc(16 * MIB, 7));
  execFileSync('sfdisk', ['--no-reread', '--no-tell-kernel', '--lock=no', image], { input: TABLE, stdio: 'pipe' });
  await daemon.cli('attach', image, '--name', 'vm');
  for (const disk of Object.keys(PLACES)) expect(await backUp(disk)).toMatchObject({ kind: 'full' });

  // Through the partition: seen by itself and the whole, not by its neighbour.
  await write('vm/1', 1, '100k 4k');
  expect(await backUp('vm/1')).toMatchObject({ kind: 'incremental', bytesRead: 64 * KIB });
  expect(await backUp('vm')).toMatchObject({ kind: 'incremental', bytesRead: 64 * KIB });
  expect(await backUp('vm/2')).toMatchObject({ kind: 'incremental', bytesRead: 0 });

  // Through the whole, across the end of the first and the start of the second.
  const [, end] = PLACES['vm/1']!;
  const [start] = PLACES['vm/2']!;
  await write('vm', 2, `${end - 4096} ${start - end + 8192}`);
  for (const disk of Object.keys(PLACES)) {
    const point = await backUp(disk);
    expect({ disk, ...point, some: point.bytesRead > 0 }).toMatchObject({ disk, kind: 'incremental', some: true });
  }
  // Nothing since: a partition's backups have changed nothing of the whole's history.
  expect(await backUp('vm/2')).toMatchObject({ kind: 'incremental', bytesRead: 0 });
});
