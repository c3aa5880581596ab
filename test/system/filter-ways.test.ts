/** The four ways of a bio in a filter that the daemon has loaded from a module: passed, completed, held, redirected; each
 *  seen by a real client. */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Client } from '../../src/api/client.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { requirePrograms } from '../requirements.ts';
import { DaemonUnderTest } from './daemon-under-test.ts';

const MODULES = [
  path.join(import.meta.dirname, '../../examples/rate-limiter.mjs'),
  path.join(import.meta.dirname, '../../examples/write-once.mjs'),
  path.join(import.meta.dirname, 'redirecting-filter.mjs'),
];
const SIZE = 4 * MIB;
let daemon: DaemonUnderTest;
let client: Client;
let image: string;

beforeEach(async () => {
  daemon = new DaemonUnderTest();
  client = new Client({ dir: daemon.state });
  await daemon.start('--filter-module', ...MODULES);
  image = daemon.path('vm.img');
  fs.writeFileSync(image, '');
  fs.truncateSync(image, SIZE);
  await client.attach({ path: image, name: 'vm' });
});
afterEach(() => daemon.dispose());

/** What qemu-io says of commands to an export. */
async function qemuIo(name: string, ...commands: string[]): Promise<string> {
  const words = ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), daemon.uri(name)];
  const { stdout, stderr } = await promisify(execFile)('qemu-io', words).catch(
    (cause: unknown) => cause as { stdout: string; stderr: string },
  );
  return stdout + stderr;
}

test('passed, and completed', async (context) => {
  requirePrograms(context, 'qemu-io');
  await client.attachFilter('vm', 'write-once');
  expect(await qemuIo('vm', 'write -P 1 0 64k', 'flush')).toMatch(/wrote 65536/);
  expect(fs.readFileSync(image)[0]).toBe(1);
  expect(await qemuIo('vm', 'write -P 2 0 64k')).toMatch(/write failed: Operation not permitted/);
  expect(fs.readFileSync(image)[0]).toBe(1);
  expect(await client.filterCtl('vm', { filter: 'write-once', command: 'stats' })).toMatchObject({ refusedBios: 1 });
});

test('held', async (context) => {
  requirePrograms(context, 'qemu-io');
  await client.attachFilter('vm', 'rate-limiter', { bytesPerSecond: 100 });
  const ctl = (command: string, payload?: unknown): Promise<unknown> =>
    client.filterCtl('vm', { filter: 'rate-limiter', command, ...(payload !== undefined && { payload }) });
  const written = (): number[] => {
    const bytes = fs.readFileSync(image);
    return [0, 1, 2, 3].map((n) => bytes[n * 512 * KIB]!);
  };
  // What the first takes off its credit would be paid for in hours: the others wait.
  const writes = [0, 1, 2, 3].map((n) => `aio_write -q -P ${n + 1} ${n * 512}k 512k`);
  const io = qemuIo('vm', ...writes, 'aio_flush');
  await expect.poll(() => ctl('stats')).toMatchObject({ waiting: 3, heldBios: 3 });
  expect(written()).toEqual([1, 0, 0, 0]);
  const began = performance.now();
  await ctl('rate', { bytesPerSecond: MIB });
  expect(await io).not.toMatch(/failed/);
  // The last of four goes when three have been paid for.
  expect(performance.now() - began).toBeGreaterThan(1300);
  expect(written()).toEqual([1, 2, 3, 4]);
});

test('redirected: clients and snapshots see where it goes, and the disk is as it was without it', async (context) => {
  requirePrograms(context, 'qemu-io');
  await qemuIo('vm', 'write -P 1 0 2M', 'flush');
  const file = daemon.path('start.img');
  fs.writeFileSync(file, Buffer.alloc(MIB, 5));
  await client.attachFilter('vm', 'elsewhere', { file, length: MIB });
  expect((await client.disk('vm')).filters).toEqual(['blksnap', 'elsewhere']);
  expect(await qemuIo('vm', 'read -P 5 0 1M', 'read -P 1 1M 1M')).not.toMatch(/failed|verification/);

  const { id } = await client.createSnapshot({ disks: ['vm'], storage: ':memory:' });
  expect(await qemuIo('vm', 'write -P 6 64k 64k', 'write -P 7 1536k 64k', 'flush')).not.toMatch(/failed/);
  const [redirected, disk] = [fs.readFileSync(file), fs.readFileSync(image)];
  expect([redirected[0], redirected[64 * KIB], disk[64 * KIB], disk[1536 * KIB]]).toEqual([5, 6, 1, 7]);
  // What the write replaced was copied, from where it lay.
  expect(await qemuIo(`vm@${id}`, 'read -P 5 0 1M', 'read -P 1 1M 1M')).not.toMatch(/failed|verification/);
  await client.destroySnapshot(id);
  await client.createSnapshot({ disks: ['vm'], storage: ':memory:' });
  const map = await client.cbtMap('vm');
  expect([map[0], map[1], map[24]]).toEqual([1, 2, 2]);

  await client.detachFilter('vm', 'elsewhere');
  expect(await qemuIo('vm', 'read -P 1 0 1536k', 'read -P 7 1536k 64k')).not.toMatch(/failed|verification/);
});
