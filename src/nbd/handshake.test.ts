import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RawClient } from '../../test/nbd/raw-peer.ts';
import { NbdWorld } from '../../test/nbd/world.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { MIB } from '../util/units.ts';
import {
  INFO_BLOCK_SIZE,
  INFO_DESCRIPTION,
  INFO_NAME,
  OPT_ABORT,
  OPT_EXPORT_NAME,
  OPT_EXTENDED_HEADERS,
  OPT_GO,
  OPT_INFO,
  OPT_LIST,
  OPT_LIST_META_CONTEXT,
  OPT_SET_META_CONTEXT,
  OPT_STARTTLS,
  OPT_STRUCTURED_REPLY,
  REP_ACK,
  REP_ERR_EXT_HEADER_REQD,
  REP_ERR_INVALID,
  REP_ERR_TOO_BIG,
  REP_ERR_UNKNOWN,
  REP_ERR_UNSUP,
  REP_INFO,
  REP_META_CONTEXT,
  REP_SERVER,
} from './protocol.ts';
import { Message } from './wire.ts';

describe('the handshake', () => {
  let world: NbdWorld;
  const clients: RawClient[] = [];
  const connect = async (): Promise<RawClient> => {
    const client = await RawClient.connect(world.address.path);
    clients.push(client);
    return client;
  };
  const greeted = async (): Promise<RawClient> => {
    const client = await connect();
    await client.greet();
    return client;
  };
  beforeEach(async () => {
    world = await NbdWorld.open();
    world.addMemory('disk', 4 * MIB);
    world.addMemory('fixed', MIB, { readOnly: true });
    const device = new MemoryDevice('with contexts', MIB, world.reactor.arena);
    const blockStatus = async (_offset: number, length: number) => [{ length, flags: 0 }];
    world.add('image', device, [
      { name: 'qemu:dirty-bitmap:a', blockStatus },
      { name: 'x-y:z', blockStatus },
    ]);
  });
  afterEach(async () => {
    for (const client of clients.splice(0)) client.close();
    await world.close();
  });

  const name = (text: string): Message => new Message().counted(text);
  const contexts = (exportName: string, ...queries: string[]): Message => {
    const message = name(exportName).u32(queries.length);
    for (const query of queries) message.counted(query);
    return message;
  };

  it('greets in fixed newstyle', async () => {
    const client = await connect();
    expect((await client.greet()).toString('hex')).toBe('4e42444d4147494349484156454f50540003');
  });

  it('lists the exports', async () => {
    const client = await greeted();
    const replies = await client.ask(OPT_LIST);
    expect(replies.map(({ type }) => type)).toEqual([REP_SERVER, REP_SERVER, REP_SERVER, REP_ACK]);
    expect(replies[0]!.data.toString('latin1')).toBe('\0\0\0\x04diskthe device disk');
    expect((await client.ask(OPT_LIST, new Message().u32(0)))[0]!.type).toBe(REP_ERR_INVALID);
  });

  it('tells what was asked for, and only that', async () => {
    const client = await greeted();
    const [info, ack] = await client.ask(OPT_INFO, name('disk').u16(0));
    expect(ack!.type).toBe(REP_ACK);
    // Type, size, then: has flags, flush, fua, trim, zeroes, multi-conn, cache, fast zero
    expect(info!.data.toString('hex')).toBe('000000000000004000000d6d');
    const asked = name('disk').u16(4).u16(INFO_BLOCK_SIZE).u16(INFO_NAME).u16(INFO_DESCRIPTION).u16(999);
    const all = await client.ask(OPT_INFO, asked);
    expect(all.map(({ type }) => type)).toEqual([REP_INFO, REP_INFO, REP_INFO, REP_INFO, REP_ACK]);
    const sizes = all.find(({ data }) => data.readUInt16BE(0) === INFO_BLOCK_SIZE)!.data;
    expect([sizes.readUInt32BE(2), sizes.readUInt32BE(6), sizes.readUInt32BE(10)]).toEqual([512, 4096, 4 * MIB]);
    expect(
      all
        .find(({ data }) => data.readUInt16BE(0) === INFO_NAME)!
        .data.subarray(2)
        .toString(),
    ).toBe('disk');
    const readOnly = (await client.ask(OPT_INFO, name('fixed').u16(0)))[0]!;
    expect(readOnly.data.readUInt16BE(10) & 0b1101_0111).toBe(0b0000_0111);
  });

  it('enters transmission by EXPORT_NAME, with and without padding', async () => {
    for (const [flags, length] of [
      [1, 134],
      [3, 10],
    ] as const) {
      const client = await connect();
      await client.greet(flags);
      client.option(OPT_EXPORT_NAME, new Message().text('disk'));
      expect((await client.read(length)).readBigUInt64BE(0)).toBe(4n * 1024n * 1024n);
      client.request(3, 0, 0);
      expect(await client.simple()).toEqual({ error: 0, cookie: 1 });
    }
  });

  it.each([
    [
      'an unknown name by EXPORT_NAME',
      (client: RawClient) => client.option(OPT_EXPORT_NAME, new Message().text('none')),
      /unknown export "none"/,
    ],
    [
      'a wrong magic number',
      (client: RawClient) => client.send(new Message().text('IHAVENOT').u32(OPT_LIST).u32(0)),
      /magic/,
    ],
    ['garbage', (client: RawClient) => client.send(Buffer.alloc(5000, 0xa5)), /magic/],
    ['an absurd length', (client: RawClient) => client.option(OPT_GO, new Message(), 0xffffffff), /4294967295 bytes/],
    [
      'EXPORT_NAME with extended headers',
      (client: RawClient) => {
        client.option(OPT_EXTENDED_HEADERS);
        client.option(OPT_EXPORT_NAME, new Message().text('disk'));
      },
      /extended/,
    ],
    [
      'a name that is not UTF-8',
      (client: RawClient) => client.option(OPT_EXPORT_NAME, new Message().raw(Buffer.from([0xff, 0xfe]))),
      /UTF-8/,
    ],
  ])('drops a client for %s', async (_what, say, reason) => {
    const client = await greeted();
    say(client);
    await client.end();
    await expect.poll(() => world.dropped).toHaveLength(1);
    expect(world.dropped[0]).toMatch(reason);
  });

  it('drops a client that sets unknown flags', async () => {
    const odd = await connect();
    await odd.greet(0x80);
    await odd.end();
    await expect.poll(() => world.dropped).toEqual([expect.stringContaining('flags 0x80')]);
  });

  it('drops a client that stays silent, and one that stops in the middle of an option', async () => {
    await world.close();
    world = await NbdWorld.open({ handshakeLimitMs: 100 });
    const silent = [await connect(), await connect()];
    silent[1]!.send(new Message().u32(3).text('IHAVEO'));
    for (const each of silent) await each.end();
    await expect.poll(() => world.dropped).toEqual(Array(2).fill('no end of the handshake in 100 ms'));
  });

  it('refuses malformed options and goes on', async () => {
    const client = await greeted();
    await client.ask(OPT_STRUCTURED_REPLY);
    const refused = async (option: number, data: Message): Promise<number> =>
      (await client.ask(option, data)).at(-1)!.type;
    expect(await refused(OPT_GO, new Message())).toBe(REP_ERR_INVALID);
    expect(await refused(OPT_GO, new Message().u32(1000).u16(0))).toBe(REP_ERR_INVALID);
    expect(await refused(OPT_GO, name('disk').u16(3).u16(1))).toBe(REP_ERR_INVALID);
    expect(await refused(OPT_GO, name('disk').u16(0).u16(7))).toBe(REP_ERR_INVALID);
    expect(
      await refused(
        OPT_GO,
        new Message()
          .u32(2)
          .raw(Buffer.from([0xc3, 0x28]))
          .u16(0),
      ),
    ).toBe(REP_ERR_INVALID);
    expect(await refused(OPT_GO, name('d\0k').u16(0))).toBe(REP_ERR_INVALID);
    expect(await refused(OPT_GO, name('x'.repeat(5000)).u16(0))).toBe(REP_ERR_INVALID);
    expect(await refused(OPT_GO, name('x'.repeat(100_000)).u16(0))).toBe(REP_ERR_TOO_BIG);
    expect(await refused(OPT_GO, name('none').u16(0))).toBe(REP_ERR_UNKNOWN);
    expect(await refused(OPT_SET_META_CONTEXT, name('image').u32(0xffffffff))).toBe(REP_ERR_INVALID);
    expect(await refused(OPT_LIST_META_CONTEXT, name('image').u32(1).u32(500))).toBe(REP_ERR_INVALID);
    expect(await refused(OPT_LIST_META_CONTEXT, contexts('none'))).toBe(REP_ERR_UNKNOWN);
    expect(await refused(OPT_STRUCTURED_REPLY, new Message().u16(1))).toBe(REP_ERR_INVALID);
    expect(await refused(OPT_STARTTLS, new Message())).toBe(REP_ERR_UNSUP);
    expect(await refused(4711, new Message().text('whatever'))).toBe(REP_ERR_UNSUP);
    expect((await client.ask(OPT_GO, name('disk').u16(0))).at(-1)!.type).toBe(REP_ACK);
  });

  it('lets a client go in good order', async () => {
    const client = await greeted();
    expect((await client.ask(OPT_ABORT))[0]!.type).toBe(REP_ACK);
    await client.end();
    const mute = await connect();
    mute.close();
    expect(world.dropped).toEqual([]);
  });

  it('lists and selects metadata contexts', async () => {
    const client = await greeted();
    expect((await client.ask(OPT_SET_META_CONTEXT, contexts('image', 'base:allocation')))[0]!.type).toBe(
      REP_ERR_INVALID,
    );
    await client.ask(OPT_STRUCTURED_REPLY);
    const names = async (option: number, ...queries: string[]): Promise<string[]> => {
      const replies = await client.ask(option, contexts('image', ...queries));
      expect(replies.at(-1)!.type).toBe(REP_ACK);
      return replies
        .filter(({ type }) => type === REP_META_CONTEXT)
        .map(({ data }) => `${data.readUInt32BE(0)} ${data.subarray(4).toString()}`);
    };
    expect(await names(OPT_LIST_META_CONTEXT)).toEqual(['0 base:allocation', '0 qemu:dirty-bitmap:a', '0 x-y:z']);
    expect(await names(OPT_LIST_META_CONTEXT, 'base:', 'qemu:', 'other:')).toEqual([
      '0 base:allocation',
      '0 qemu:dirty-bitmap:a',
    ]);
    expect(await names(OPT_SET_META_CONTEXT, 'qemu:', 'base:', '', 'base:none')).toEqual([]);
    expect(await names(OPT_SET_META_CONTEXT, 'x-y:z', 'base:allocation', 'x-y:z')).toEqual([
      '1 x-y:z',
      '2 base:allocation',
    ]);
    expect(await names(OPT_SET_META_CONTEXT)).toEqual([]);
  });

  it('does not go back from extended headers', async () => {
    const client = await greeted();
    expect((await client.ask(OPT_EXTENDED_HEADERS))[0]!.type).toBe(REP_ACK);
    expect((await client.ask(OPT_STRUCTURED_REPLY))[0]!.type).toBe(REP_ERR_EXT_HEADER_REQD);
  });

  it('limits the number of connections', async () => {
    const small = await NbdWorld.open({ arenaBytes: MIB }); // room for 4
    small.addMemory('', MIB);
    const four = await Promise.all([1, 2, 3, 4].map(() => RawClient.connect(small.address.path)));
    for (const client of four) await client.greet();
    const fifth = await RawClient.connect(small.address.path);
    expect(await fifth.end()).toHaveLength(0);
    expect(small.dropped).toEqual(['more than 4 connections']);
    four[0]!.close();
    await four[1]!.go('');
    for (const client of four) client.close();
    await small.close();
  });
});
