import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RawClient } from '../../test/nbd/raw-peer.ts';
import { MemoryDevice } from '../block/memory-device.ts';
import { BioPool } from '../block/bio.ts';
import { chooseDriver, openReactor } from '../io/open.ts';
import type { Reactor } from '../io/reactor.ts';
import { MIB } from '../util/units.ts';
import type { NbdExport } from './export.ts';
import { OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, REP_ACK } from './protocol.ts';
import { NbdServer } from './server.ts';
import type { HandedOver } from './server.ts';
import { Message } from './wire.ts';

const usable = (await chooseDriver()).driver === 'uring';

describe('two servers', () => {
  let reactor: Reactor;
  let directory: string;
  let address: string;
  const servers: NbdServer[] = [];
  const handed: HandedOver[] = [];
  const clients: RawClient[] = [];

  beforeEach(async (context) => {
    context.skip(!usable, 'the portable driver cannot hand clients over');
    reactor = await openReactor({ driver: 'uring', arenaBytes: 16 * MIB, cooperative: true });
    directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-hand-'));
    address = path.join(directory, 'nbd.sock');
    const exports = ['here', 'there'].map((name): NbdExport => {
      const blockStatus = async (_offset: number, length: number) => [{ length, flags: 7 }];
      const device = new MemoryDevice(name, MIB, reactor.arena);
      const own = { name: `x-y:${name}`, blockStatus };
      return { name, description: '', device, contexts: (query) => (query === own.name ? [own] : []) };
    });
    for (const [index, own] of exports.entries()) {
      const table = {
        find: (name: string) => (name === own.name ? own : undefined),
        list: () => exports,
        isElsewhere: (name: string) => name === exports[1 - index]!.name,
      };
      const handOver = (client: HandedOver): void => {
        // As a message to another thread.
        const copy = structuredClone(client);
        handed.push(copy);
        void servers[1 - index]!.takeOver(copy);
      };
      servers.push(new NbdServer({ reactor, pool: new BioPool(), exports: table, handOver }));
    }
    await servers[0]!.listen({ kind: 'unix', path: address });
  });
  afterEach(async () => {
    for (const client of clients.splice(0)) client.close();
    for (const server of servers.splice(0)) await server.close();
    handed.length = 0;
    await reactor?.close();
    if (directory !== undefined) fs.rmSync(directory, { recursive: true, force: true });
  });

  const greeted = async (flags = 3): Promise<RawClient> => {
    const client = await RawClient.connect(address);
    clients.push(client);
    await client.greet(flags);
    return client;
  };
  const name = (text: string): Message => new Message().counted(text);

  it('serve a client where its export is, with all that it has sent', async () => {
    const client = await greeted();
    // The option and two requests in one go.
    const go = new Message().text('IHAVEOPT').u32(OPT_EXPORT_NAME).u32(5).text('there');
    const read = (cookie: number): Message => new Message().u32(0x25609513).u16(0).u16(3).u64(cookie).u64(0).u32(0);
    client.send(Buffer.concat([go.bytes, read(1).bytes, read(2).bytes]));
    expect((await client.read(10)).readBigUInt64BE(0)).toBe(BigInt(MIB));
    expect([await client.simple(), await client.simple()]).toEqual([
      { error: 0, cookie: 1 },
      { error: 0, cookie: 2 },
    ]);
    expect(servers.map(({ connections }) => connections)).toEqual([0, 1]);
    client.request(3, 0, 0, { cookie: 3 });
    expect(await client.simple()).toEqual({ error: 0, cookie: 3 });
  });

  it('keep the padding, the reply style and the contexts that were agreed on', async () => {
    const client = await greeted(1);
    expect((await client.ask(OPT_STRUCTURED_REPLY))[0]!.type).toBe(REP_ACK);
    await client.ask(OPT_SET_META_CONTEXT, name('there').u32(1).counted('x-y:there'));
    expect((await client.ask(OPT_INFO, name('here').u16(0))).at(-1)!.type).toBe(REP_ACK);
    expect((await client.ask(OPT_GO, name('there').u16(0))).at(-1)!.type).toBe(REP_ACK);
    expect(handed.map(({ exportName }) => exportName)).toEqual(['there', 'here', 'there']);
    client.request(7, 0, 4096, { flags: 8 });
    const { data } = await client.chunk();
    // The context's number, a length, its flags.
    expect([data.readUInt32BE(0), data.readUInt32BE(4), data.readUInt32BE(8)]).toEqual([1, 4096, 7]);
  });

  it('count the options of a client that goes to and fro', async () => {
    const client = await greeted();
    await client.ask(OPT_INFO, name('there').u16(0));
    await client.ask(OPT_INFO, name('here').u16(0));
    await client.ask(OPT_INFO, name('there').u16(0));
    expect(handed.map(({ state }) => state.options)).toEqual([0, 1, 2]);
    client.close();
    for (const server of servers) await server.close();
    expect(servers.map(({ connections }) => connections)).toEqual([0, 0]);
  });
});
