/** Our client against other people's NBD servers, on both drivers. */

import { execFileSync, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import type { TestContext } from 'vitest';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { BioPool, DISCARD, FLUSH, FUA, READ, runBio, WRITE, WRITE_ZEROES } from '../../src/block/bio.ts';
import { chooseDriver, openReactor } from '../../src/io/open.ts';
import type { DriverName } from '../../src/io/open.ts';
import type { Reactor, SocketAddress } from '../../src/io/reactor.ts';
import { listExports, NbdClient } from '../../src/nbd/client.ts';
import { Prng } from '../../src/util/prng.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { freePort } from '../free-port.ts';
import { requirePrograms } from '../requirements.ts';

const SIZE = 16 * MIB;
const drivers: DriverName[] = (await chooseDriver()).driver === 'uring' ? ['uring', 'portable'] : ['portable'];

describe.each(drivers)('servers for our client, %s driver', (driver) => {
  let reactor: Reactor;
  const pool = new BioPool();
  let dir: string;
  let socket: string;
  let server: ChildProcess | null;
  let client: NbdClient | null;

  beforeEach(async () => {
    reactor = await openReactor({ driver, arenaBytes: 32 * MIB, cooperative: true });
    dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-servers-'));
    socket = path.join(dir, 'nbd.sock');
    server = client = null;
  });
  afterEach(async () => {
    await client?.close();
    if (server !== null && server.exitCode === null) {
      const exited = once(server, 'exit');
      server.kill();
      await exited;
    }
    expect(pool.lent).toBe(0);
    await expect.poll(() => reactor.arena.lentBytes).toBe(0);
    await reactor.close();
    fs.rmSync(dir, { recursive: true });
  });

  const start = async (program: string, args: readonly string[], address: net.NetConnectOpts): Promise<void> => {
    const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] });
    server = child;
    let said = '';
    child.stderr.on('data', (data: Buffer) => (said += data.toString()));
    const answers = (): Promise<boolean> =>
      new Promise((resolve) => {
        const probe = net.connect(address);
        probe.on('error', () => resolve(false));
        probe.on('connect', () => probe.end(() => resolve(true)));
      });
    await expect.poll(() => (child.exitCode === null ? answers() : said), { interval: 20 }).toBe(true);
  };
  const connect = async (
    exportName: string,
    contexts?: readonly string[],
    address: SocketAddress = { kind: 'unix', path: socket },
  ) => {
    client = await NbdClient.connect({ reactor, address, exportName, ...(contexts && { contexts }) });
    return client;
  };

  /** Every op that the server has, held against an array. */
  const exercise = async (device: NbdClient): Promise<void> => {
    const at = reactor.arena.allocate(2 * MIB);
    const model = new Uint8Array(device.size);
    const prng = new Prng(5);
    const run = async (op: 0 | 1 | 2 | 3 | 4, offset: number, length: number, flags = 0): Promise<void> => {
      expect(await runBio(pool, device, { op, offset, length, at, flags })).toBe(0);
    };
    const { capabilities } = device;
    for (let i = 0; i < 60; i++) {
      const length = 512 * (1 + prng.below(i % 10 === 0 ? 4096 : 64));
      const offset = 512 * prng.below((device.size - length) / 512);
      if (i % 4 === 3 && capabilities.writeZeroes) {
        await run(WRITE_ZEROES, offset, length);
        model.fill(0, offset, offset + length);
      } else {
        prng.fill(reactor.arena.bytes.subarray(at, at + length));
        model.set(reactor.arena.bytes.subarray(at, at + length), offset);
        await run(WRITE, offset, length, i % 7 === 0 && capabilities.fua ? FUA : 0);
      }
    }
    if (capabilities.flush) await run(FLUSH, 0, 0);
    if (capabilities.discard) {
      await run(DISCARD, 0, 64 * KIB);
      await run(READ, 0, 64 * KIB);
      model.set(reactor.arena.bytes.subarray(at, at + 64 * KIB), 0);
    }
    for (let offset = 0; offset < device.size; offset += 2 * MIB) {
      const length = Math.min(2 * MIB, device.size - offset);
      await run(READ, offset, length);
      expect(
        Buffer.compare(reactor.arena.bytes.subarray(at, at + length), model.subarray(offset, offset + length)),
      ).toBe(0);
    }
    reactor.arena.release(at);
  };
  const newImage = (size = SIZE): string => {
    const image = path.join(dir, 'disk.img');
    fs.writeFileSync(image, '');
    fs.truncateSync(image, size);
    return image;
  };

  it('nbdkit', async (context: TestContext) => {
    requirePrograms(context, 'nbdkit');
    await start('nbdkit', ['--foreground', '--unix', socket, 'file', newImage()], { path: socket });
    const device = await connect('');
    expect(device.contexts).toEqual(['base:allocation']);
    expect(await device.extents(0, SIZE)).toEqual([{ length: SIZE, hole: true, zero: true }]);
    await exercise(device);
  });

  it('nbdkit without structured replies, read-only, and with errors', async (context: TestContext) => {
    requirePrograms(context, 'nbdkit');
    const filters = ['--filter=error', '--filter=blocksize-policy'];
    const parameters = [
      '1M',
      'error-pread=EIO',
      'error-pread-rate=100%',
      'blocksize-minimum=4096',
      'blocksize-maximum=64K',
      'blocksize-error-policy=error',
    ];
    await start('nbdkit', ['--foreground', '--no-sr', '-r', '--unix', socket, ...filters, 'memory', ...parameters], {
      path: socket,
    });
    const device = await connect('');
    expect(device).toMatchObject({ readOnly: true, logicalBlockSize: 4096, contexts: [] });
    expect(await device.extents(0, MIB)).toEqual([{ length: MIB, hole: false, zero: false }]);
    const at = reactor.arena.allocate(MIB);
    expect(await runBio(pool, device, { op: READ, offset: 0, length: MIB, at })).toBe(5);
    expect(await runBio(pool, device, { op: WRITE, offset: 0, length: 4096, at })).toBe(1);
    reactor.arena.release(at);
    expect(device.failure).toBeUndefined();
  });

  it('qemu-nbd', async (context: TestContext) => {
    requirePrograms(context, 'qemu-nbd');
    await start(
      'qemu-nbd',
      ['--persistent', '--format=raw', '--discard=unmap', '-x', 'disk', `--socket=${socket}`, newImage()],
      { path: socket },
    );
    expect((await listExports(reactor, { address: { kind: 'unix', path: socket } })).map(({ name }) => name)).toEqual([
      'disk',
    ]);
    await exercise(await connect('disk'));
    await client!.close();
    await expect(connect('other')).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('a dirty bitmap of QEMU', async (context: TestContext) => {
    requirePrograms(context, 'qemu-nbd', 'qemu-img', 'qemu-io');
    const image = path.join(dir, 'disk.qcow2');
    const run = (program: string, ...args: readonly string[]): void =>
      void execFileSync(program, args, { stdio: 'pipe' });
    run('qemu-img', 'create', '-f', 'qcow2', image, String(SIZE));
    run('qemu-img', 'bitmap', '--add', '-g', '64k', image, 'b0');
    run('qemu-io', '-f', 'qcow2', '-c', 'write -P 1 1M 64k', '-c', 'write -P 1 5M 1M', image);
    await start(
      'qemu-nbd',
      ['--persistent', '--read-only', '--format=qcow2', '--bitmap=b0', `--socket=${socket}`, image],
      { path: socket },
    );
    const device = await connect('', ['base:allocation', 'qemu:dirty-bitmap:b0']);
    expect(device.contexts.toSorted()).toEqual(['base:allocation', 'qemu:dirty-bitmap:b0']);
    const dirty: Array<{ offset: number; length: number }> = [];
    for (let offset = 0; offset < SIZE;) {
      for (const { length, flags } of await device.blockStatus('qemu:dirty-bitmap:b0', offset, SIZE - offset)) {
        if ((flags & 1) !== 0) dirty.push({ offset, length });
        offset += length;
      }
    }
    expect(dirty).toEqual([
      { offset: MIB, length: 64 * KIB },
      { offset: 5 * MIB, length: MIB },
    ]);
  });

  it('nbd-server', async (context: TestContext) => {
    requirePrograms(context, 'nbd-server');
    const port = await freePort();
    const config = path.join(dir, 'config');
    fs.writeFileSync(
      config,
      `[generic]\nallowlist = true\nlistenaddr = 127.0.0.1\nport = ${port}\n[disk]\nexportname = ${newImage()}\nflush = true\nfua = true\ntrim = true\n`,
    );
    // It has no way to serve several connections in the foreground.
    const pidFile = path.join(dir, 'pid');
    execFileSync('nbd-server', ['-C', config, '-p', pidFile], { stdio: 'ignore' });
    await expect.poll(() => fs.existsSync(pidFile) && fs.readFileSync(pidFile, 'utf8')).toMatch(/^\d+/);
    const address: SocketAddress = { kind: 'tcp', host: '127.0.0.1', port };
    try {
      expect((await listExports(reactor, { address })).map(({ name }) => name)).toEqual(['disk']);
      await exercise(await connect('disk', [], address));
    } finally {
      process.kill(parseInt(fs.readFileSync(pidFile, 'utf8'), 10));
    }
  });

  it('clear errors for what is no NBD server', async () => {
    const address: SocketAddress = { kind: 'unix', path: socket };
    await expect(connect('')).rejects.toMatchObject({ code: 'ENOENT' });
    const talker = net.createServer((peer) => peer.end('220 mail.example.com ESMTP ready\r\n'));
    talker.listen(socket);
    await once(talker, 'listening');
    await expect(NbdClient.connect({ reactor, address, exportName: '' })).rejects.toMatchObject({
      code: 'EPROTO',
      message: expect.stringContaining('greet') as string,
    });
    talker.close();
  });
});
