import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import tls from 'node:tls';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { openDescriptors } from '../../test/contracts/reactor-bench.ts';
import { RawClient } from '../../test/nbd/raw-peer.ts';
import { NbdWorld } from '../../test/nbd/world.ts';
import { MIB } from '../util/units.ts';
import { NbdClient } from './client.ts';
import type { Peer } from './peer.ts';
import {
  OPT_ABORT,
  OPT_EXPORT_NAME,
  OPT_GO,
  OPT_LIST,
  OPT_STARTTLS,
  OPT_STRUCTURED_REPLY,
  REP_ACK,
  REP_ERR_INVALID,
  REP_ERR_TLS_REQD,
} from './protocol.ts';
import { loadServerCredentials } from './tls-credentials.ts';
import { TlsFront } from './tls-front.ts';
import { Message } from './wire.ts';

const KEY = '00112233445566778899aabbccddeeff';

describe('in front of TLS', () => {
  let world: NbdWorld;
  let front: TlsFront;
  let socket: string;
  let keys: string;
  let peers: Peer[];
  let reasons: string[];
  const clients: RawClient[] = [];

  async function open(handshakeLimitMs = 5_000): Promise<void> {
    const credentials = loadServerCredentials({ psk: keys })!;
    front = await TlsFront.listen(
      { kind: 'unix', path: socket },
      {
        credentials,
        handshakeLimitMs,
        onClient: (client) => {
          peers.push(client.peer);
          void world.server.takeOver(client);
        },
        onDropped: (reason) => reasons.push(reason),
      },
    );
  }

  beforeEach(async () => {
    world = await NbdWorld.open({ driver: 'portable' });
    world.addMemory('disk', MIB);
    socket = path.join(world.dir, 'tls.sock');
    keys = path.join(world.dir, 'keys.psk');
    fs.writeFileSync(keys, `alice:${KEY}\nbob:${KEY.split('').toReversed().join('')}\n`, { mode: 0o600 });
    peers = [];
    reasons = [];
    await open();
  });
  afterEach(async () => {
    for (const client of clients.splice(0)) client.close();
    await front.close();
    await world.close();
  });

  async function raw(): Promise<RawClient> {
    const client = await RawClient.connect(socket);
    clients.push(client);
    await client.greet();
    return client;
  }

  /** Our own client, by a key of a name of its choice. */
  async function connect(name: string, psk = keys): Promise<NbdClient> {
    const where = { address: { kind: 'unix', path: socket }, exportName: 'disk' } as const;
    return await NbdClient.connect({ reactor: world.reactor, ...where, tls: { pskName: name, psk } });
  }

  it("the socket is its owner's alone", () => {
    expect(fs.statSync(socket).mode & 0o777).toBe(0o600);
  });

  it('a client that proves a name is served under it', async () => {
    for (const name of ['alice', 'bob']) {
      const device = await connect(name);
      expect(device.size).toBe(MIB);
      await device.close();
    }
    expect(peers).toEqual(['alice', 'bob'].map((name) => ({ kind: 'named', name })));
    expect(reasons).toEqual([]);
  });

  it('a wrong key and an unknown name get nothing', async () => {
    const wrong = path.join(world.dir, 'wrong.psk');
    fs.writeFileSync(wrong, `alice:${KEY.replace('0', '1')}\nmallory:${KEY}\n`, { mode: 0o600 });
    await expect(connect('alice', wrong)).rejects.toMatchObject({ code: 'EACCES' });
    await expect(connect('mallory', wrong)).rejects.toMatchObject({ code: 'EACCES' });
    expect(peers).toEqual([]);
    await expect.poll(() => reasons.length).toBe(2);
    expect(reasons.join()).not.toMatch(new RegExp(KEY.slice(4), 'i'));
  });

  it('every option but STARTTLS and ABORT is refused', async () => {
    const client = await raw();
    for (const option of [OPT_LIST, OPT_GO, OPT_STRUCTURED_REPLY, 99]) {
      client.option(option);
      expect(await client.reply()).toMatchObject({ option, type: REP_ERR_TLS_REQD });
    }
    client.option(OPT_STARTTLS, new Message().u32(0));
    expect((await client.reply()).type).toBe(REP_ERR_INVALID);
    client.option(OPT_ABORT);
    expect((await client.reply()).type).toBe(REP_ACK);
    await client.end();
    expect([peers, reasons]).toEqual([[], []]);
  });

  it('an export name without TLS ends the connection', async () => {
    const client = await raw();
    client.option(OPT_EXPORT_NAME, new Message().text('disk'));
    expect(await client.end()).toHaveLength(0);
    expect(reasons).toEqual(['The client asked for an export without TLS']);
  });

  it('what comes on the heels of STARTTLS ends the connection, before TLS can take it for protected', async () => {
    const client = await raw();
    const injected = new Message().text('IHAVEOPT').u32(OPT_GO).u32(0);
    client.send(new Message().text('IHAVEOPT').u32(OPT_STARTTLS).u32(0).raw(injected.bytes));
    expect(await client.end()).toHaveLength(0);
    expect(reasons).toEqual(['The client sent data after STARTTLS that TLS does not protect: 16 bytes']);
  });

  it('what comes in plain after the answer is no TLS', async () => {
    const client = await raw();
    client.option(OPT_STARTTLS);
    expect((await client.reply()).type).toBe(REP_ACK);
    client.option(OPT_LIST);
    const rest = await client.end();
    expect(rest.includes('IHAVEOPT') || rest.includes('disk')).toBe(false);
    expect(peers).toEqual([]);
    await expect.poll(() => reasons).toEqual([expect.stringMatching(/^TLS failed: /)]);
  });

  it('an endless talker is cut off', async () => {
    const client = await raw();
    for (let i = 0; i < 40; i++) client.option(OPT_LIST);
    await client.end();
    expect(reasons).toEqual([expect.stringMatching(/32 options and did not begin TLS/)]);
    const loud = await raw();
    loud.option(OPT_LIST, new Message(), 2 ** 31);
    await loud.end();
    expect(reasons[1]).toMatch(/2147483648 bytes before TLS/);
  });

  it.each(['nothing', 'greeting', 'STARTTLS'])('who stops after %s is not waited for', async (last) => {
    await front.close();
    await open(200);
    const client = await RawClient.connect(socket);
    clients.push(client);
    if (last !== 'nothing') await client.greet();
    if (last === 'STARTTLS') client.option(OPT_STARTTLS);
    await client.end();
    await expect.poll(() => reasons).toEqual([expect.stringMatching(/no TLS in 200 ms|TLS failed: .*timeout/i)]);
  });

  it('who says goodbye and more, and leaves, is let go', async () => {
    const before = openDescriptors();
    const client = await raw();
    client.option(OPT_ABORT);
    client.option(OPT_LIST);
    await client.end();
    client.close();
    await expect.poll(openDescriptors).toBe(before);
  });

  it('inside TLS, a new greeting does not come, and nothing of before counts', async () => {
    const client = await raw();
    client.option(OPT_STARTTLS);
    expect((await client.reply()).type).toBe(REP_ACK);
    client.socket.removeAllListeners('data');
    const secure = tls.connect({
      socket: client.socket,
      ciphers: 'PSK',
      pskCallback: () => ({ identity: 'alice', psk: Buffer.from(KEY, 'hex') }),
      checkServerIdentity: () => undefined,
    });
    const inside = new RawClient(secure);
    inside.option(OPT_LIST);
    expect((await inside.reply()).data.subarray(4).toString()).toMatch(/^disk/);
    expect((await inside.reply()).type).toBe(REP_ACK);
    inside.close();
  });

  it('a break on either side reaches the other', async () => {
    const device = await connect('alice');
    await front.close();
    await expect.poll(() => world.server.connections).toBe(0);
    await device.close();
    await open();
    const again = await connect('alice');
    const served = world.exports.get('disk')!;
    world.exports.delete('disk');
    await world.server.dropExport(served);
    await expect.poll(() => again.failure).toBeDefined();
    await again.close();
    world.exports.set('disk', served);
  });

  it('the client goes on with nobody who has no TLS, or adds to its answer', async () => {
    const replies = [
      new Message()
        .u32(0x0003e889)
        .u32(0x045565a9)
        .u32(OPT_STARTTLS)
        .u32(2 ** 31 + 1)
        .u32(0),
      new Message().u32(0x0003e889).u32(0x045565a9).u32(OPT_STARTTLS).u32(REP_ACK).u32(0).text('more'),
    ];
    const errors = [];
    for (const reply of replies) {
      const other = path.join(world.dir, `other${errors.length}.sock`);
      const server = net.createServer((peer) => {
        peer.write(new Message().text('NBDMAGICIHAVEOPT').u16(3).bytes);
        let got = 0;
        peer
          .on('error', () => {})
          .on('data', (data: Buffer) => {
            got += data.length;
            if (got >= 20) peer.write(reply.bytes);
          });
      });
      await new Promise<void>((resolve) => server.listen(other, resolve));
      const where = { address: { kind: 'unix', path: other }, exportName: '' } as const;
      errors.push(
        await NbdClient.connect({ reactor: world.reactor, ...where, tls: { pskName: 'alice', psk: keys } }).then(
          () => 'connected',
          (cause: unknown) => (cause as Error).message,
        ),
      );
      await new Promise<void>((resolve) => server.close(() => resolve()));
    }
    expect(errors).toEqual([
      expect.stringMatching(/Cannot use TLS: the NBD server refused it/),
      expect.stringMatching(/4 bytes/),
    ]);
  });
});
