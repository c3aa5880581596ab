/** Our locks against the real QEMU's, both ways. */

import { execFile, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RawPeer } from '../../test/nbd/raw-peer.ts';
import { requirePrograms } from '../../test/requirements.ts';
import { openReactor } from '../io/open.ts';
import type { Reactor } from '../io/reactor.ts';
import { MIB } from '../util/units.ts';
import type { BlockDevice } from './device.ts';
import { openDevice } from './open.ts';

const run = promisify(execFile);

let dir: string;
let image: string;
let reactor: Reactor;
const devices: BlockDevice[] = [];

beforeEach(async () => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-locks-'));
  image = path.join(dir, 'image');
  fs.writeFileSync(image, new Uint8Array(MIB));
  reactor = await openReactor({ driver: 'portable', arenaBytes: MIB });
});
afterEach(async () => {
  for (const device of devices.splice(0)) await device.close();
  await reactor.close();
  fs.rmSync(dir, { recursive: true });
});

async function open(readOnly = false): Promise<BlockDevice> {
  const device = await openDevice(image, { reactor, readOnly });
  devices.push(device);
  return device;
}

describe('two opens of ours', () => {
  it('one writer excludes writers and readers', async () => {
    const writer = await open();
    await expect(open()).rejects.toMatchObject({ code: 'EBUSY' });
    await expect(open(true)).rejects.toMatchObject({ code: 'EBUSY' });
    await writer.close();
    await expect(open()).resolves.toBeDefined();
  });

  it('readers share, and exclude writers', async () => {
    await open(true);
    await open(true);
    await expect(open()).rejects.toMatchObject({ code: 'EBUSY', message: expect.stringContaining(image) as string });
  });

  it('a refused open leaves no lock behind', async () => {
    const reader = await open(true);
    await expect(open()).rejects.toMatchObject({ code: 'EBUSY' });
    await reader.close();
    await expect(open()).resolves.toBeDefined();
  });
});

describe('QEMU', () => {
  const qemuIo = (...flags: string[]): Promise<unknown> => run('qemu-io', ['-f', 'raw', ...flags, image]);

  it('cannot write what we have for writing', async (context) => {
    requirePrograms(context, 'qemu-io');
    const device = await open();
    await expect(qemuIo('-c', 'write 0 4k')).rejects.toMatchObject({
      stderr: expect.stringContaining('lock') as string,
    });
    await device.close();
    await expect(qemuIo('-c', 'write 0 4k')).resolves.toBeDefined();
  });

  it('can read, not write, what we have for reading', async (context) => {
    requirePrograms(context, 'qemu-io');
    await open(true);
    await expect(qemuIo('-r', '-c', 'read 0 4k')).resolves.toBeDefined();
    await expect(qemuIo('-c', 'write 0 4k')).rejects.toMatchObject({
      stderr: expect.stringContaining('lock') as string,
    });
  });

  const serve = async (...flags: string[]): Promise<ChildProcess> => {
    const socket = path.join(dir, 'nbd');
    const server = spawn('qemu-nbd', ['-t', '-f', 'raw', '-k', socket, ...flags, image], { stdio: 'ignore' });
    // It listens before it opens, and locks, the image; it greets afterwards.
    const greeted = (): Promise<boolean> =>
      RawPeer.connect(socket).then(
        async (client) => {
          await client.read(8);
          client.close();
          return true;
        },
        () => false,
      );
    await expect.poll(greeted).toBe(true);
    return server;
  };
  const stop = async (server: ChildProcess): Promise<void> => {
    server.kill('SIGTERM');
    await once(server, 'exit');
  };

  it('keeps us from what it has for writing', async (context) => {
    requirePrograms(context, 'qemu-nbd');
    const server = await serve();
    await expect(open()).rejects.toMatchObject({ code: 'EBUSY' });
    await expect(open(true)).rejects.toMatchObject({ code: 'EBUSY' });
    await stop(server);
    await expect(open()).resolves.toBeDefined();
  });

  it('lets us read what it has for reading', async (context) => {
    requirePrograms(context, 'qemu-nbd');
    const server = await serve('--read-only');
    await expect(open(true)).resolves.toBeDefined();
    await stop(server);
  });
});
