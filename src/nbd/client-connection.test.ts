import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RawPeer } from '../../test/nbd/raw-peer.ts';
import { BioPool, READ, runBio } from '../block/bio.ts';
import { openReactor } from '../io/open.ts';
import type { Reactor } from '../io/reactor.ts';
import { ERRNO } from '../util/errors.ts';
import { MIB } from '../util/units.ts';
import { NbdClient } from './client.ts';
import {
  HAS_FLAGS,
  OPT_EXTENDED_HEADERS,
  OPT_GO,
  OPT_SET_META_CONTEXT,
  OPT_STRUCTURED_REPLY,
  REP_ACK,
  REP_ERR_UNSUP,
  REP_INFO,
  REP_META_CONTEXT,
  REPLY_BLOCK_STATUS,
  REPLY_ERROR,
  REPLY_NONE,
  REPLY_OFFSET_DATA,
  REPLY_OFFSET_HOLE,
} from './protocol.ts';
import { Message } from './wire.ts';

interface Asked {
  readonly cookie: bigint;
  readonly offset: number;
  readonly length: number;
}

/** A server that agrees on one export of 1 MiB, and then says what the test wants. */
class ScriptedServer extends RawPeer {
  readonly #style: 'simple' | 'structured';

  constructor(socket: net.Socket, style: 'simple' | 'structured') {
    super(socket);
    this.#style = style;
  }

  async shakeHands(): Promise<void> {
    this.send(new Message().text('NBDMAGICIHAVEOPT').u16(3));
    await this.read(4);
    for (;;) {
      const header = await this.read(16);
      const option = header.readUInt32BE(8);
      await this.read(header.readUInt32BE(12));
      const reply = (type: number, data = new Message()): void =>
        this.send(
          new Message().u32(0x3e889).u32(0x045565a9).u32(option).u32(type).u32(data.bytes.length).raw(data.bytes),
        );
      if (option === OPT_EXTENDED_HEADERS) reply(REP_ERR_UNSUP);
      else if (option === OPT_STRUCTURED_REPLY) reply(this.#style === 'structured' ? REP_ACK : REP_ERR_UNSUP);
      else if (option === OPT_SET_META_CONTEXT) {
        reply(REP_META_CONTEXT, new Message().u32(77).text('base:allocation'));
        reply(REP_ACK);
      } else if (option === OPT_GO) {
        reply(REP_INFO, new Message().u16(0).u64(MIB).u16(HAS_FLAGS));
        reply(REP_ACK);
        return;
      }
    }
  }

  async request(): Promise<Asked> {
    const header = await this.read(28);
    return {
      cookie: header.readBigUInt64BE(8),
      offset: Number(header.readBigUInt64BE(16)),
      length: header.readUInt32BE(24),
    };
  }

  simple(cookie: bigint, error: number): void {
    this.send(new Message().u32(0x67446698).u32(error).u64(Number(cookie)));
  }

  chunk(cookie: bigint, type: number, data: Message, flags = 1): void {
    this.send(
      new Message().u32(0x668e33ef).u16(flags).u16(type).u64(Number(cookie)).u32(data.bytes.length).raw(data.bytes),
    );
  }
}

describe('the client and what servers say', () => {
  let reactor: Reactor;
  let pool: BioPool;
  let dir: string;
  let listener: net.Server;
  let client: NbdClient | undefined;
  let server: ScriptedServer;
  let at: number;

  const connect = async (style: 'simple' | 'structured'): Promise<NbdClient> => {
    const socket = path.join(dir, 'nbd.sock');
    listener.listen(socket);
    const accepted = once(listener, 'connection');
    const connecting = NbdClient.connect({ reactor, address: { kind: 'unix', path: socket }, exportName: '' });
    server = new ScriptedServer(((await accepted) as [net.Socket])[0], style);
    await server.shakeHands();
    client = await connecting;
    return client;
  };
  const read = (length = 1024): Promise<number> => runBio(pool, client!, { op: READ, offset: 4096, length, at });
  const data = (offset: number, length: number, value: number): Message =>
    new Message().u64(offset).raw(Buffer.alloc(length, value));

  beforeEach(async () => {
    reactor = await openReactor({ arenaBytes: 4 * MIB, cooperative: true });
    pool = new BioPool();
    at = reactor.arena.allocate(MIB);
    dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-scripted-'));
    listener = net.createServer();
    client = undefined;
  });
  afterEach(async () => {
    await client?.close();
    server.close();
    listener.close();
    reactor.arena.release(at);
    expect(pool.lent).toBe(0);
    await expect.poll(() => reactor.arena.lentBytes).toBe(0);
    await reactor.close();
    fs.rmSync(dir, { recursive: true });
  });

  it('puts a read together from chunks in any order, with holes', async () => {
    await connect('structured');
    reactor.arena.bytes.fill(0xee, at, at + 2048);
    const status = read(2048);
    const { cookie } = await server.request();
    server.chunk(cookie, REPLY_OFFSET_DATA, data(4096 + 1536, 512, 4), 0);
    server.chunk(cookie, REPLY_OFFSET_HOLE, new Message().u64(4096 + 512).u32(1024), 0);
    server.chunk(cookie, REPLY_OFFSET_DATA, data(4096, 512, 1), 0);
    server.chunk(cookie, REPLY_NONE, new Message());
    expect(await status).toBe(0);
    const bytes = reactor.arena.bytes.subarray(at, at + 2048);
    expect([bytes[0], bytes[511], bytes[512], bytes[1535], bytes[1536], bytes[2047]]).toEqual([1, 1, 0, 0, 4, 4]);
  });

  it('gives a request the error that came with its chunks', async () => {
    await connect('structured');
    const status = read();
    const { cookie } = await server.request();
    server.chunk(cookie, REPLY_OFFSET_DATA, data(4096, 1024, 1), 0);
    server.chunk(cookie, REPLY_ERROR, new Message().u32(ERRNO.ENOSPC).u16(4).text('full'), 0);
    server.chunk(cookie, 0x8fff, new Message().u32(5).u16(0).u64(1));
    expect(await status).toBe(ERRNO.ENOSPC);
    expect(client!.failure).toBeUndefined();
  });

  it('takes answers in any order', async () => {
    await connect('simple');
    const [one, two] = [read(512), read(512)];
    const [first, second] = [await server.request(), await server.request()];
    server.simple(second.cookie, 5);
    server.simple(first.cookie, 0);
    server.send(Buffer.alloc(512, 9));
    expect([await one, await two]).toEqual([0, ERRNO.EIO]);
  });

  it.each<[string, 'simple' | 'structured', (asked: Asked) => void]>([
    ['a wrong magic number', 'simple', () => server.send(Buffer.alloc(64, 0x11))],
    ['a reply to no request', 'simple', ({ cookie }) => server.simple(cookie + 5n, 0)],
    [
      'a structured reply that was not negotiated',
      'simple',
      ({ cookie }) => server.chunk(cookie, REPLY_NONE, new Message()),
    ],
    ['a simple reply to a structured read', 'structured', ({ cookie }) => server.simple(cookie, 0)],
    [
      'data from before the request',
      'structured',
      ({ cookie }) => server.chunk(cookie, REPLY_OFFSET_DATA, data(4095, 512, 1)),
    ],
    [
      'data from after the request',
      'structured',
      ({ cookie }) => server.chunk(cookie, REPLY_OFFSET_DATA, data(4096, 1536, 1)),
    ],
    ['too little data', 'structured', ({ cookie }) => server.chunk(cookie, REPLY_OFFSET_DATA, data(4096, 512, 1))],
    [
      'the same data twice',
      'structured',
      ({ cookie }) => {
        server.chunk(cookie, REPLY_OFFSET_DATA, data(4608, 512, 1), 0);
        server.chunk(cookie, REPLY_OFFSET_DATA, data(4608, 512, 1), 0);
        server.chunk(cookie, REPLY_NONE, new Message());
      },
    ],
    ['success without data', 'structured', ({ cookie }) => server.chunk(cookie, REPLY_NONE, new Message())],
    ['an unknown chunk', 'structured', ({ cookie }) => server.chunk(cookie, 99, new Message())],
    [
      'a malformed hole',
      'structured',
      ({ cookie }) => server.chunk(cookie, REPLY_OFFSET_HOLE, new Message().u64(4096)),
    ],
    [
      'a hole of no length',
      'structured',
      ({ cookie }) => server.chunk(cookie, REPLY_OFFSET_HOLE, new Message().u64(4096).u32(0)),
    ],
    [
      'an error message longer than its chunk',
      'structured',
      ({ cookie }) => server.chunk(cookie, REPLY_ERROR, new Message().u32(5).u16(100)),
    ],
    [
      'an error chunk of a megabyte',
      'structured',
      ({ cookie }) => server.chunk(cookie, REPLY_ERROR, new Message().raw(Buffer.alloc(MIB))),
    ],
    [
      'a status for a read',
      'structured',
      ({ cookie }) => server.chunk(cookie, REPLY_BLOCK_STATUS, new Message().u32(77).u32(1).u32(0)),
    ],
  ])('ends the connection for %s', async (_what, style, say) => {
    await connect(style);
    const statuses = [read(), read()];
    say(await server.request());
    expect(await Promise.all(statuses)).toEqual([ERRNO.EIO, ERRNO.EIO]);
    expect(client!.failure).toMatchObject({
      code: 'EPROTO',
      message: expect.stringContaining('broke the protocol') as string,
    });
    expect(await read()).toBe(ERRNO.EIO);
  });

  it.each([
    ['another context', new Message().u32(78).u32(4096).u32(0)],
    ['no extents', new Message().u32(77)],
    ['half an extent', new Message().u32(77).u32(4096)],
    ['an extent of no length', new Message().u32(77).u32(0).u32(0)],
  ])('ends the connection for a status with %s', async (_what, payload) => {
    await connect('structured');
    const status = client!.blockStatus('base:allocation', 0, 8192);
    status.catch(() => {}); // looked at below
    server.chunk((await server.request()).cookie, REPLY_BLOCK_STATUS, payload);
    await expect(status).rejects.toMatchObject({ code: 'EPROTO' });
    expect(client!.failure?.code).toBe('EPROTO');
  });

  it('ends what is under way when the server goes in the middle of data', async () => {
    await connect('structured');
    const status = read(MIB / 2);
    const { cookie } = await server.request();
    server.send(
      new Message()
        .u32(0x668e33ef)
        .u16(1)
        .u16(REPLY_OFFSET_DATA)
        .u64(Number(cookie))
        .u32(8 + MIB / 2)
        .u64(4096)
        .raw(Buffer.alloc(100_000)),
    );
    server.socket.end();
    expect(await status).toBe(ERRNO.EIO);
    expect(client!.failure?.code).toBe('ECONNRESET');
  });
});
