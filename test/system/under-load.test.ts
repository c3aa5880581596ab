/** Snapshots that come and go, and a daemon that is killed, under a real client's load. */

import { execFile } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { MIB } from '../../src/util/units.ts';
import { requirePrograms } from '../requirements.ts';
import { DaemonUnderTest, fio } from './daemon-under-test.ts';

const run = promisify(execFile);
const SIZE = 128 * MIB;
let daemon: DaemonUnderTest;

beforeEach(() => {
  daemon = new DaemonUnderTest();
});
afterEach(() => daemon.dispose());

interface Taken {
  readonly id: string;
  readonly images: ReadonlyArray<{ readonly disk: string; readonly uri: string }>;
}

interface BackedUp {
  readonly point: { readonly id: string; readonly kind: string; readonly bytesRead: number };
}

async function sha256(uri: string): Promise<string> {
  const { stdout } = await run('nbdcopy', [uri, '-'], { maxBuffer: 4 * SIZE, encoding: 'buffer' });
  return crypto.createHash('sha256').update(stdout).digest('hex');
}

test('fio verifies what it wrote while snapshots come and go, and their images stay as they were', async (context) => {
  requirePrograms(context, 'fio', 'nbdcopy');
  await daemon.start();
  await daemon.disk('vm', SIZE);
  const load = fio(
    daemon.uri('vm'),
    '--rw=randwrite', '--bsrange=4k-64k', '--iodepth=16', `--size=${SIZE}`, '--time_based', '--runtime=12',
    '--verify=crc32c', '--verify_fatal=1', '--serialize_overlap=1', '--verify_state_save=0', '--randrepeat=0',
  ); // prettier-ignore
  let running = true;
  void load.ended.then(() => (running = false));
  let rounds = 0;
  while (running) {
    const older = await daemon.json<Taken>('snapshot', 'create', 'vm');
    const first = await sha256(older.images[0]!.uri);
    const newer = await daemon.json<Taken>('snapshot', 'create', 'vm');
    await sleep(100);
    expect(await sha256(older.images[0]!.uri)).toBe(first);
    const second = await sha256(newer.images[0]!.uri);
    await daemon.cli('snapshot', 'destroy', rounds % 2 === 0 ? newer.id : older.id);
    const [kept, sum] = rounds % 2 === 0 ? [older, first] : [newer, second];
    expect(await sha256(kept.images[0]!.uri)).toBe(sum);
    await daemon.cli('snapshot', 'destroy', kept.id);
    rounds++;
  }
  const { code, output } = await load.ended;
  expect({ code, output }).toMatchObject({ code: 0 });
  expect(rounds).toBeGreaterThan(0);
});

/** Resolves when the file is being written to, however long the client takes to start. */
async function written(file: string): Promise<void> {
  const before = fs.statSync(file).mtimeMs;
  await expect.poll(() => fs.statSync(file).mtimeMs).toBeGreaterThan(before);
}

test('after kill -9 under load the next backup is an increment, and exact', async (context) => {
  requirePrograms(context, 'fio');
  const target = daemon.path('backups');
  await daemon.start();
  const file = await daemon.disk('vm', SIZE);
  await daemon.cli('backup', 'vm', '--to', target);
  for (let round = 0; round < 3; round++) {
    const load = fio(
      daemon.uri('vm'),
      '--rw=randwrite',
      '--bs=4k',
      '--iodepth=32',
      `--size=${SIZE}`,
      '--time_based',
      '--runtime=60',
      '--randrepeat=0',
    );
    await written(file);
    await sleep(round * 150);
    await daemon.stop('SIGKILL');
    await load.ended;
    await daemon.start();
    const { point } = await daemon.json<BackedUp>('backup', 'vm', '--to', target);
    expect(point).toMatchObject({ kind: 'incremental' });
    expect(point.bytesRead).toBeGreaterThan(0);
    const restored = daemon.path(`restored-${round}`);
    await daemon.cli('restore', target, '--disk', 'vm', '--point', point.id, '--to', restored);
    expect(fs.readFileSync(restored).equals(fs.readFileSync(file))).toBe(true);
  }
  expect(await daemon.cli('verify', target)).toMatch(/^4 restore points are good/);
});
