/** Freezing mounted file systems: an image is clean, and whatever happens they are thawed. */

import { spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Machine, sh } from '../machine.ts';

const MODULE = path.resolve(import.meta.dirname, '../../../src/kernel/fsfreeze.ts');

let machine: Machine;
let device: string;
let place: string;

beforeAll(async () => {
  machine = await Machine.start();
  device = await machine.attach('/dev/ram0', '--name', 'data');
  await sh('mkfs.ext4', '-q', '-F', device);
  place = await machine.mount(device);
});
afterAll(() => machine.dispose());

/** Whether a write to the file system comes through soon. */
async function isWritable(): Promise<void> {
  await fs.promises.writeFile(path.join(place, 'probe'), String(Math.random()), { flush: true });
}

/** A process that freezes for a time, thaws, and says whether it had stayed frozen; resolves when it is frozen. */
async function freezer(limitMs: number, forMs: number) {
  const program = `
    import { freezeMounts } from ${JSON.stringify(MODULE)};
    const frozen = await freezeMounts([${JSON.stringify(place)}], ${limitMs});
    console.log('frozen');
    setTimeout(async () => console.log(await frozen.thaw()), ${forMs});`;
  const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let said = '';
  child.stdout.on('data', (data: Buffer) => (said += data.toString()));
  await expect.poll(() => said).toContain('frozen');
  return { child, said: () => said, ended: new Promise((resolve) => child.once('close', resolve)) };
}

test('an image of a mounted file system needs no repair, but for one that was not frozen', async () => {
  const needsRecovery = async (...options: string[]): Promise<boolean> => {
    await isWritable();
    const { id, images } = await machine.daemon.json<{
      id: string;
      images: Array<{ kernelDevice: { path: string } }>;
    }>('snapshot', 'create', 'data', ...options);
    const header = await sh('dumpe2fs', '-h', images[0]!.kernelDevice.path);
    await machine.daemon.cli('snapshot', 'destroy', id);
    return header.includes('needs_recovery');
  };
  expect(await needsRecovery()).toBe(false);
  expect(await needsRecovery('--no-fsfreeze')).toBe(true);
});

test('a freeze ends when it is told to, when its time is over, and when its process is killed', async () => {
  const told = await freezer(30_000, 100);
  await told.ended;
  expect(told.said()).toContain('true');
  await isWritable();

  const late = await freezer(500, 4000);
  await isWritable();
  await late.ended;
  expect(late.said()).toContain('false');

  const killed = await freezer(100_000, 100_000);
  killed.child.kill('SIGKILL');
  await isWritable();
});

test('a time limit that is over means no snapshot, also without commands', async () => {
  await expect(machine.daemon.cli('snapshot', 'create', 'data', '--freeze-timeout', '1')).rejects.toThrow(
    /Cannot freeze \/|not taken 1 ms after the freeze began/,
  );
  await isWritable();
  expect(await machine.daemon.json('snapshot', 'list')).toEqual({ snapshots: [] });
});

test('what somebody else has frozen stays frozen, and the snapshot is taken', async () => {
  await sh('fsfreeze', '--freeze', place);
  let isWritten = false;
  const writing = isWritable().then(() => (isWritten = true));
  const id = (await machine.daemon.cli('snapshot', 'create', 'data')).split('\n')[0]!;
  await machine.daemon.cli('snapshot', 'destroy', id);
  expect(isWritten).toBe(false);
  await sh('fsfreeze', '--unfreeze', place);
  await writing;
});

test('the daemon does not freeze what it writes to itself', async () => {
  const storage = path.join(place, 'storage');
  await expect(machine.daemon.cli('snapshot', 'create', 'data', '--storage', storage)).rejects.toThrow(
    /the daemon itself writes to/,
  );
  await isWritable();
});
