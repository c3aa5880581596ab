import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { RawClient } from '../../test/nbd/raw-peer.ts';
import { NbdWorld } from '../../test/nbd/world.ts';
import type { Bio } from '../block/bio.ts';
import { Disk } from '../block/disk.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { chooseDriver } from '../io/open.ts';
import type { DriverName } from '../io/open.ts';
import { UringStream } from '../io/uring/stream.ts';
import { ERRNO } from '../util/errors.ts';
import { KIB, MIB } from '../util/units.ts';
import {
  CMD_BLOCK_STATUS,
  CMD_CACHE,
  CMD_DISC,
  CMD_FLAG_DF,
  CMD_FLAG_FAST_ZERO,
  CMD_FLAG_FUA,
  CMD_FLAG_NO_HOLE,
  CMD_FLAG_PAYLOAD_LEN,
  CMD_FLAG_REQ_ONE,
  CMD_FLUSH,
  CMD_READ,
  CMD_TRIM,
  CMD_WRITE,
  CMD_WRITE_ZEROES,
  NBD_EINVAL,
  NBD_EIO,
  NBD_ENOSPC,
  NBD_EOVERFLOW,
  NBD_EPERM,
  NBD_ESHUTDOWN,
  OPT_EXTENDED_HEADERS,
  OPT_SET_META_CONTEXT,
  OPT_STRUCTURED_REPLY,
  REPLY_BLOCK_STATUS,
  REPLY_BLOCK_STATUS_EXT,
  REPLY_ERROR,
  REPLY_NONE,
  REPLY_OFFSET_DATA,
} from './protocol.ts';
import { Message } from './wire.ts';

const SIZE = 4 * MIB;
const drivers: DriverName[] = (await chooseDriver()).driver === 'uring' ? ['uring', 'portable'] : ['portable'];

/** A device whose bios end when the test says so. */
class HeldDevice extends MemoryDevice {
  readonly held: Bio[] = [];

  override submit(bio: Bio): void {
    this.held.push(bio);
  }

  release(status?: number): void {
    for (const bio of this.held.splice(0)) {
      if (status === undefined) super.submit(bio);
      else bio.end(status);
    }
  }
}

describe.each(drivers)('transmission, %s driver', (driver) => {
  let world: NbdWorld;
  let device: MemoryDevice;
  const clients: RawClient[] = [];

  const connect = async (
    name: string,
    style: 'simple' | 'structured' | 'extended',
    contexts: readonly string[] = [],
  ): Promise<RawClient> => {
    const client = await RawClient.connect(world.address.path);
    clients.push(client);
    await client.greet();
    if (style === 'structured') await client.ask(OPT_STRUCTURED_REPLY);
    if (style === 'extended') await client.ask(OPT_EXTENDED_HEADERS);
    if (contexts.length > 0) {
      const message = new Message().counted(name).u32(contexts.length);
      for (const context of contexts) message.counted(context);
      await client.ask(OPT_SET_META_CONTEXT, message);
    }
    await client.go(name);
    return client;
  };

  const open = async (
    options: { readonly arenaBytes?: number; readonly stallLimitMs?: number } = {},
  ): Promise<void> => {
    world = await NbdWorld.open({ driver, arenaBytes: 8 * MIB, ...options });
    device = world.addMemory('disk', SIZE);
    world.addMemory('fixed', SIZE, { readOnly: true });
  };
  beforeEach(() => open());
  afterEach(async () => {
    for (const client of clients.splice(0)) client.close();
    await world.close();
  });

  it('reads and writes with simple replies', async () => {
    const client = await connect('disk', 'simple');
    client.request(CMD_WRITE, 1024, 512, { cookie: 2 ** 53 - 1 });
    client.send(Buffer.alloc(512, 7));
    expect(await client.simple()).toEqual({ error: 0, cookie: 2 ** 53 - 1 });
    expect(device.bytes.subarray(1024, 1536).every((byte) => byte === 7)).toBe(true);
    client.request(CMD_READ, 512, 1024, { cookie: 5 });
    expect(await client.simple()).toEqual({ error: 0, cookie: 5 });
    expect(Buffer.compare(await client.read(1024), device.bytes.subarray(512, 1536))).toBe(0);
  });

  it('sends what a device that gives way holds in small parts, in order', async () => {
    const shy = world.addMemory('shy', 3 * MIB);
    Object.defineProperty(shy, 'givesWay', { value: true });
    for (let i = 0; i < shy.bytes.length; i++) shy.bytes[i] = (i * 7 + (i >> 12)) % 256;
    const queue = vi.spyOn(UringStream.prototype, 'queue');
    const client = await connect('shy', 'simple');
    // Odd lengths: parts and pieces end in different places.
    for (const [offset, length] of [
      [0, MIB + 512],
      [512, 196 * 512],
      [1024, 4096],
      [MIB, 2 * MIB - 512],
    ] as const) {
      client.request(CMD_READ, offset, length, { cookie: 5 });
      expect(await client.simple()).toEqual({ error: 0, cookie: 5 });
      expect(Buffer.compare(await client.read(length), shy.bytes.subarray(offset, offset + length))).toBe(0);
    }
    if (world.reactor.driver === 'uring') {
      expect(Math.max(...queue.mock.calls.map(([, length]) => length))).toBe(32 * KIB);
    }
    queue.mockRestore();
  });

  it('takes requests in any portions', async () => {
    const client = await connect('disk', 'simple');
    const stream = new Message();
    for (let i = 0; i < 20; i++) {
      stream
        .u32(0x25609513)
        .u16(0)
        .u16(CMD_WRITE)
        .u64(i)
        .u64(i * 4096)
        .u32(4096)
        .raw(Buffer.alloc(4096, i + 1));
    }
    for (let at = 0, part = 1; at < stream.bytes.length; at += part, part = (part * 3 + 1) % 7919) {
      client.send(stream.bytes.slice(at, at + part));
      if (at % 3 === 0) await new Promise(setImmediate);
    }
    const cookies = new Set<number>();
    for (let i = 0; i < 20; i++) cookies.add((await client.simple()).cookie);
    expect(cookies.size).toBe(20);
    for (let i = 0; i < 20; i++) expect(device.bytes[i * 4096 + 4095]).toBe(i + 1);
  });

  it('answers every bad request with its error, and goes on', async () => {
    const client = await connect('disk', 'simple');
    const error = async (command: number, offset: number, length: number, flags = 0): Promise<number> => {
      client.request(command, offset, length, { flags });
      if (command === CMD_WRITE) client.send(Buffer.alloc(length));
      const reply = await client.simple();
      if (reply.error === 0 && command === CMD_READ) await client.read(length);
      return reply.error;
    };
    expect(await error(CMD_READ, SIZE, 512)).toBe(NBD_EINVAL);
    expect(await error(CMD_READ, SIZE - 512, 1024)).toBe(NBD_EINVAL);
    expect(await error(CMD_READ, 2 ** 52, 512)).toBe(NBD_EINVAL);
    expect(await error(CMD_WRITE, SIZE, 512)).toBe(NBD_ENOSPC);
    expect(await error(CMD_WRITE_ZEROES, SIZE, 512)).toBe(NBD_ENOSPC);
    expect(await error(CMD_TRIM, SIZE, 512)).toBe(NBD_EINVAL);
    expect(await error(CMD_READ, 1, 512)).toBe(NBD_EINVAL);
    expect(await error(CMD_WRITE, 512, 100)).toBe(NBD_EINVAL);
    expect(await error(CMD_READ, 0, 0)).toBe(NBD_EINVAL);
    expect(await error(CMD_READ, 0, 3 * MIB)).toBe(NBD_EINVAL); // this arena's limit is 2 MiB
    expect(await error(CMD_WRITE, 0, 3 * MIB)).toBe(NBD_EINVAL);
    expect(await error(CMD_FLUSH, 512, 0)).toBe(NBD_EINVAL);
    expect(await error(99, 0, 0)).toBe(NBD_EINVAL);
    expect(await error(CMD_READ, 0, 512, CMD_FLAG_DF)).toBe(NBD_EINVAL);
    expect(await error(CMD_WRITE, 0, 512, CMD_FLAG_NO_HOLE)).toBe(NBD_EINVAL);
    expect(await error(CMD_TRIM, 0, 512, 0x8000)).toBe(NBD_EINVAL);
    expect(await error(CMD_BLOCK_STATUS, 0, 512)).toBe(NBD_EINVAL);
    expect(await error(CMD_READ, 0, 512, CMD_FLAG_FUA)).toBe(0);
    expect(await error(CMD_FLUSH, 0, 0, CMD_FLAG_FUA)).toBe(0);
    expect(await error(CMD_WRITE_ZEROES, 0, 512, CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO)).toBe(0);
    expect(await error(CMD_TRIM, 0, SIZE, CMD_FLAG_FUA)).toBe(0);
    expect(await error(CMD_CACHE, 0, MIB)).toBe(0);
    expect(await error(CMD_CACHE, 0, SIZE)).toBe(NBD_EOVERFLOW);
    expect(world.dropped).toEqual([]);
  });

  it('protects a read-only export', async () => {
    const client = await connect('fixed', 'simple');
    for (const command of [CMD_WRITE, CMD_WRITE_ZEROES, CMD_TRIM]) {
      client.request(command, 0, 512);
      if (command === CMD_WRITE) client.send(Buffer.alloc(512, 1));
      expect((await client.simple()).error).toBe(NBD_EPERM);
    }
  });

  it.each([
    [
      'a wrong magic number',
      (client: RawClient) => client.request(CMD_READ, 0, 512, { magic: 0x12345678 }),
      /magic number 0x12345678/,
    ],
    ['an absurd payload', (client: RawClient) => client.request(CMD_WRITE, 0, 2 ** 31), /payload of 2147483648/],
    [
      'leaving in the middle of a large write',
      (client: RawClient) => {
        client.request(CMD_WRITE, 0, MIB);
        client.send(Buffer.alloc(300_000));
        client.socket.end();
      },
      /middle of a write/,
    ],
  ])('drops a client for %s; others notice nothing', async (_what, say, reason) => {
    const other = await connect('disk', 'structured');
    const client = await connect('disk', 'simple');
    say(client);
    other.request(CMD_READ, 0, 4096);
    expect((await other.chunk()).data).toHaveLength(4096 + 8);
    await client.end();
    await expect.poll(() => world.dropped).toHaveLength(1);
    expect(world.dropped[0]).toMatch(reason);
    other.request(CMD_READ, 0, 4096);
    expect((await other.chunk()).type).toBe(REPLY_OFFSET_DATA);
  });

  it('answers all that was asked before DISC, and what was asked before the end of the stream', async () => {
    for (const end of ['disc', 'eof']) {
      const client = await connect('disk', 'simple');
      for (let i = 0; i < 50; i++) client.request(CMD_READ, i * 4096, 4096, { cookie: i });
      if (end === 'disc') client.request(CMD_DISC, 0, 0);
      else client.socket.end();
      expect(await client.end()).toHaveLength(50 * (4096 + 16));
    }
    expect(world.dropped).toEqual([]);
  });

  it('gives structured replies', async () => {
    const client = await connect('disk', 'structured', ['base:allocation']);
    device.bytes.fill(3, 64 * KIB, 128 * KIB);
    client.request(CMD_READ, 64 * KIB, 512, { flags: CMD_FLAG_DF });
    const data = await client.chunk();
    expect(data).toMatchObject({ type: REPLY_OFFSET_DATA, flags: 1, cookie: 1 });
    expect(data.data.readBigUInt64BE(0)).toBe(65536n);
    expect(data.data.subarray(8).every((byte) => byte === 3)).toBe(true);
    client.request(CMD_READ, 0, 3 * MIB);
    const error = await client.chunk();
    expect([error.type, error.data.readUInt32BE(0)]).toEqual([REPLY_ERROR, NBD_EOVERFLOW]);
    client.request(CMD_BLOCK_STATUS, 0, MIB);
    const status = await client.chunk();
    expect(status.type).toBe(REPLY_BLOCK_STATUS);
    expect(Array.from({ length: status.data.length / 4 }, (_, i) => status.data.readUInt32BE(i * 4))).toEqual([
      1,
      64 * KIB,
      2,
      64 * KIB,
      0,
      MIB - 128 * KIB,
      2,
    ]);
    client.request(CMD_BLOCK_STATUS, 512, 1024, { flags: CMD_FLAG_REQ_ONE });
    expect((await client.chunk()).data.readUInt32BE(4)).toBe(1024);
    client.request(CMD_BLOCK_STATUS, SIZE - 512, 1024);
    expect((await client.chunk()).data.readUInt32BE(0)).toBe(NBD_EINVAL);
  });

  it('gives extended replies', async () => {
    const client = await connect('disk', 'extended', ['base:allocation']);
    client.extended(CMD_WRITE, 512, 1024, { flags: CMD_FLAG_PAYLOAD_LEN, cookie: 9 });
    client.send(Buffer.alloc(1024, 4));
    expect(await client.chunk()).toMatchObject({ type: REPLY_NONE, flags: 1, cookie: 9, offset: 512 });
    client.extended(CMD_READ, 512, 1024);
    expect((await client.chunk()).data.subarray(8)).toEqual(Buffer.alloc(1024, 4));
    client.extended(CMD_WRITE, 0, 512); // no payload
    expect((await client.chunk()).data.readUInt32BE(0)).toBe(NBD_EINVAL);
    client.extended(CMD_READ, 0, 512, { flags: CMD_FLAG_PAYLOAD_LEN });
    client.send(Buffer.alloc(512));
    expect((await client.chunk()).data.readUInt32BE(0)).toBe(NBD_EINVAL);
    client.extended(CMD_TRIM, 0, 2 ** 52);
    expect((await client.chunk()).data.readUInt32BE(0)).toBe(NBD_EINVAL);
    client.extended(CMD_BLOCK_STATUS, 0, SIZE);
    const all = await client.chunk();
    expect(all.type).toBe(REPLY_BLOCK_STATUS_EXT);
    expect(all.data.length).toBe(8 + 16 * all.data.readUInt32BE(4));
  });

  it('limits a block status to the contexts of its payload', async () => {
    const blockStatus = async (_offset: number, length: number) => [{ length, flags: 1 }];
    world.add('image', new MemoryDevice('image', MIB, world.reactor.arena), [
      { name: 'x:a', blockStatus },
      { name: 'x:b', blockStatus },
    ]);
    const client = await connect('image', 'extended', ['x:a', 'x:b']);
    const ask = (...ids: number[]): void => {
      client.extended(CMD_BLOCK_STATUS, 0, 8 + 4 * ids.length, { flags: CMD_FLAG_PAYLOAD_LEN });
      const payload = new Message().u64(4096);
      for (const id of ids) payload.u32(id);
      client.send(payload);
    };
    ask(2);
    const one = await client.chunk();
    expect([one.flags, one.data.readUInt32BE(0), Number(one.data.readBigUInt64BE(8))]).toEqual([1, 2, 4096]);
    for (const wrong of [[3], [1, 1], []]) {
      ask(...wrong);
      expect((await client.chunk()).data.readUInt32BE(0)).toBe(NBD_EINVAL);
    }
    ask(1, 2);
    expect([(await client.chunk()).flags, (await client.chunk()).flags]).toEqual([0, 1]);
  });

  it('passes on what the device says, and what a context rejects with', async () => {
    const held = world.add('held', new HeldDevice('held', MIB, world.reactor.arena), [
      { name: 'x:bad', blockStatus: () => Promise.reject(new Error('broken')) },
    ]);
    const client = await connect('held', 'structured', ['x:bad']);
    for (const [errno, error] of [
      [ERRNO.EIO, NBD_EIO],
      [ERRNO.ESHUTDOWN, NBD_ESHUTDOWN],
      [ERRNO.ENOSPC, NBD_ENOSPC],
      [ERRNO.EOPNOTSUPP, NBD_EINVAL],
    ] as const) {
      client.request(CMD_READ, 0, 512);
      await expect.poll(() => held.held.length).toBe(1);
      held.release(errno);
      expect((await client.chunk()).data.readUInt32BE(0)).toBe(error);
    }
    client.request(CMD_BLOCK_STATUS, 0, 512);
    expect((await client.chunk()).data.readUInt32BE(0)).toBe(NBD_EIO);
  });

  it('waits while a disk is frozen', async () => {
    const disk = world.add('frozen', new Disk('frozen', new MemoryDevice('m', MIB, world.reactor.arena)));
    const client = await connect('frozen', 'simple');
    await disk.freeze();
    client.request(CMD_FLUSH, 0, 0);
    let answered = false;
    const reply = client.simple().finally(() => (answered = true));
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(answered).toBe(false);
    disk.thaw();
    expect((await reply).error).toBe(0);
  });

  it('lets go of a client that ended its side, and then left with replies waiting', async () => {
    await world.close();
    await open({ arenaBytes: 16 * MIB });
    const held = world.add('held', new HeldDevice('held', 4 * MIB, world.reactor.arena));
    const client = await connect('held', 'simple');
    client.socket.pause();
    for (const offset of [0, MIB, 2 * MIB]) client.request(CMD_READ, offset, MIB);
    client.socket.end();
    await expect.poll(() => held.held.length).toBe(3);
    // One reply at a time: those before it fill the socket, the last waits behind them.
    for (const bio of held.held.splice(0)) {
      bio.end(0);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    expect(world.server.connections).toBe(1);
    client.close();
    await expect.poll(() => world.server.connections).toBe(0);
  });

  it('drops the connections of an export that goes, when their requests have ended', async () => {
    const held = world.add('held', new HeldDevice('held', MIB, world.reactor.arena));
    const client = await connect('held', 'simple');
    const other = await connect('disk', 'simple');
    client.request(CMD_READ, 0, 512);
    await expect.poll(() => held.held.length).toBe(1);
    const served = world.exports.get('held')!;
    world.exports.delete('held');
    let dropped = false;
    const drop = world.server.dropExport(served).then(() => (dropped = true));
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(dropped).toBe(false);
    held.release();
    await drop;
    expect((await client.end()).readUInt32BE(4)).toBe(0); // it was answered
    other.request(CMD_FLUSH, 0, 0);
    expect((await other.simple()).error).toBe(0);
  });

  it('shares little memory among clients that want much', async () => {
    // 2 MiB each of 8, of which buffers take some: they must take turns.
    const wanting = await Promise.all(Array.from({ length: 6 }, () => connect('disk', 'simple')));
    device.bytes.fill(9);
    await Promise.all(
      wanting.map(async (client, i) => {
        for (let round = 0; round < 5; round++) {
          client.request(CMD_READ, i * 512, 2 * MIB);
          client.request(CMD_WRITE, MIB, MIB);
          client.send(Buffer.alloc(MIB, 9));
          for (let n = 0; n < 2; n++) {
            const { error, cookie } = await client.simple();
            expect([error, cookie]).toEqual([0, 1]);
            // The read is long, the write is not; both are told apart by what follows.
            if (n === 0) expect((await client.read(2 * MIB)).every((byte) => byte === 9)).toBe(true);
          }
        }
      }),
    );
  });

  // What exactly is standing still: stalling.test.ts.
  it('drops clients that hold memory and stand still while others wait for it', async () => {
    await world.close();
    await open({ stallLimitMs: 200 });
    const lazy = await Promise.all([0, 1].map(() => connect('disk', 'simple')));
    for (const client of lazy) {
      client.socket.pause();
      // The first fills the socket.
      for (let n = 0; n < 2; n++) client.request(CMD_READ, 0, 2 * MIB);
    }
    // All that clients may have.
    await expect.poll(() => world.reactor.arena.lentBytes).toBeGreaterThanOrEqual(4 * MIB);
    const busy = await connect('disk', 'simple');
    busy.request(CMD_READ, 0, 2 * MIB);
    expect((await busy.simple()).error).toBe(0);
    await busy.read(2 * MIB);
    expect(world.dropped).toEqual(Array(2).fill('the client stood still while others waited for memory'));
  });
});
