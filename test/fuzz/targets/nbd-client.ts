/** What an enemy's server sends to our NBD client, as one stream that ends. Everything that was asked of it ends, well or
 *  with an error of ours, and gives its memory back. */

import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { BioPool, FLUSH, READ, WRITE, runBio } from '../../../src/block/bio.ts';
import { openReactor } from '../../../src/io/open.ts';
import type { Reactor, SocketAddress } from '../../../src/io/reactor.ts';
import { NbdClient, listExports } from '../../../src/nbd/client.ts';
import { Message } from '../../../src/nbd/wire.ts';
import { assert } from '../../../src/util/assert.ts';
import { KIB, MIB } from '../../../src/util/units.ts';
import { EDGES } from '../draw.ts';
import type { Draw } from '../draw.ts';
import { expected } from '../expected.ts';
import { settled } from '../settled.ts';
import type { FuzzSubject, FuzzTarget } from '../target.ts';

const CONTEXTS = ['base:allocation', 'test:other'];
const READ_BYTES = 64 * KIB;
const SIZE = MIB;

/** Asks all that our client can ask, at once. */
export async function useEnemy(reactor: Reactor, address: SocketAddress): Promise<void> {
  const { arena } = reactor;
  const pool = new BioPool();
  const client = await NbdClient.connect({ reactor, address, exportName: 'victim', contexts: CONTEXTS });
  const at = arena.allocate(READ_BYTES);
  const io = (op: typeof READ | typeof WRITE | typeof FLUSH, length: number): Promise<number> =>
    runBio(pool, client, { op, offset: 0, length, at });
  await Promise.all([
    io(READ, 4096),
    io(READ, READ_BYTES),
    io(WRITE, 4096),
    io(FLUSH, 0),
    expected(() => client.extents(0, client.size)),
    ...client.contexts.map((context) => expected(() => client.blockStatus(context, 0, client.size))),
  ]);
  await client.close();
  arena.release(at);
  assert(pool.lent === 0, 'every bio ended');
}

class NbdClientSubject implements FuzzSubject {
  readonly #reactor: Reactor;
  readonly #directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-fuzz-client-'));
  readonly #address: SocketAddress & { readonly kind: 'unix' };
  readonly #listener: net.Server;
  #input: Uint8Array = new Uint8Array(0);

  static async open(): Promise<NbdClientSubject> {
    const subject = new NbdClientSubject(await openReactor({ arenaBytes: 4 * MIB, cooperative: true }));
    await new Promise<void>((resolve) => subject.#listener.listen(subject.#address.path, resolve));
    return subject;
  }

  private constructor(reactor: Reactor) {
    this.#reactor = reactor;
    this.#address = { kind: 'unix', path: path.join(this.#directory, 'enemy.sock') };
    this.#listener = net.createServer((socket) => {
      socket.on('error', () => {}); // the client may leave in the middle
      socket.resume();
      socket.end(this.#input);
    });
  }

  async run(input: Uint8Array): Promise<void> {
    this.#input = input;
    await expected(() => useEnemy(this.#reactor, this.#address));
    await expected(() => listExports(this.#reactor, { address: this.#address }));
    const { arena } = this.#reactor;
    await settled('the client has given everything back', () => arena.lentBytes === 0);
  }

  async close(): Promise<void> {
    await new Promise((resolve) => this.#listener.close(resolve));
    assert(this.#reactor.arena.lentBytes === 0, 'nothing is left of any server');
    await this.#reactor.close();
    fs.rmSync(this.#directory, { recursive: true });
  }
}

// --- the grammar ------------------------------------------------------------------------------

function optionReply(option: number, type: number, data = new Message()): Message {
  return new Message().u32(0x3e889).u32(0x045565a9).u32(option).u32(type).u32(data.bytes.length).raw(data.bytes);
}

const ACK = 1;
const UNSUPPORTED = 0x8000_0001;

/** The client's options in the order in which it asks; the style of headers that came of it. */
function handshake(draw: Draw, parts: Message[]): 'simple' | 'structured' | 'extended' {
  const style = draw.one(['simple', 'structured', 'extended'] as const);
  const refusal = (): number => (draw.chance(0.9) ? UNSUPPORTED : 0x8000_0000 + draw.below(12));
  parts.push(optionReply(11, style === 'extended' ? ACK : refusal()));
  if (style !== 'extended') parts.push(optionReply(8, style === 'structured' ? ACK : refusal()));
  if (style !== 'simple') {
    for (const [index, name] of [...CONTEXTS, ...draw.list(2, () => 'x'.repeat(draw.below(300)))].entries())
      if (draw.chance(0.9)) parts.push(optionReply(10, 4, new Message().u32(index + 1).text(name)));
    parts.push(optionReply(10, ACK));
  }
  const info = new Message().u16(0).u64(draw.chance(0.9) ? SIZE : draw.one(EDGES) * draw.one([1, 2 ** 22]));
  parts.push(optionReply(7, 3, info.u16(draw.chance(0.5) ? 0x1d6d : draw.below(0x2000))));
  if (draw.chance(0.5)) {
    const sizes = new Message()
      .u16(3)
      .u32(draw.one([1, 512, 4096]))
      .u32(4096)
      .u32(draw.one(EDGES));
    parts.push(optionReply(7, 3, sizes));
  }
  parts.push(optionReply(7, ACK));
  return style;
}

function chunk(draw: Draw, extended: boolean): Message {
  const type = draw.one([0, 1, 1, 2, 5, 6, 6, 0x8001, 0x8002, 99]);
  const data = new Message();
  const offset = draw.chance(0.9) ? 512 * draw.below(16) : draw.one(EDGES);
  if (type === 1) data.u64(offset).raw(new Uint8Array(draw.one([512, 4096, READ_BYTES, 1])));
  else if (type === 2) data.u64(offset).u32(draw.one([512, 4096, READ_BYTES, draw.one(EDGES)]));
  else if (type === 5 || type === 6) {
    const count = draw.one([0, 1, 2, 50]);
    data.u32(draw.between(1, 3));
    if (type === 6) data.u32(draw.chance(0.9) ? count : draw.one(EDGES));
    for (let i = 0; i < count; i++) {
      if (type === 6) data.u64(draw.one([4096, 2 ** 40, draw.one(EDGES)])).u64(draw.below(4));
      else data.u32(draw.one([4096, draw.one(EDGES)])).u32(draw.below(4));
    }
  } else if (type >= 0x8000)
    data
      .u32(draw.below(120))
      .u16(draw.chance(0.8) ? 3 : 0xffff)
      .text('why');
  const { bytes } = data;
  const flags = draw.chance(0.6) ? 1 : 0;
  // The cookie: how often a slot was used, and which.
  const message = new Message()
    .u32(extended ? 0x6e8a278c : 0x668e33ef)
    .u16(flags)
    .u16(type)
    .u32(draw.between(1, 2))
    .u32(draw.below(6));
  const length = draw.chance(0.95) ? bytes.length : draw.one(EDGES);
  return (extended ? message.u64(draw.one([0, 0, 4096])).u64(length) : message.u32(length)).raw(bytes);
}

function simple(draw: Draw): Message {
  const reply = new Message()
    .u32(0x67446698)
    .u32(draw.chance(0.7) ? 0 : draw.below(120))
    .u32(1)
    .u32(draw.below(6));
  return draw.chance(0.5) ? reply.raw(new Uint8Array(draw.one([4096, READ_BYTES]))) : reply;
}

function generate(draw: Draw): Uint8Array {
  const parts = [new Message().text('NBDMAGICIHAVEOPT').u16(draw.chance(0.9) ? 3 : draw.below(8))];
  if (draw.chance(0.1)) {
    const list = (): Message =>
      optionReply(
        3,
        2,
        new Message().u32(draw.chance(0.9) ? 3 : draw.one(EDGES)).text(`a${draw.below(90) + 10}description`),
      );
    parts.push(...draw.list(50, list), optionReply(3, ACK));
  } else {
    const style = handshake(draw, parts);
    parts.push(
      ...draw.list(20, () =>
        draw.chance(style === 'simple' ? 0.9 : 0.3) ? simple(draw) : chunk(draw, style === 'extended'),
      ),
    );
  }
  return Buffer.concat(parts.map(({ bytes }) => bytes));
}

export const nbdClient: FuzzTarget = { name: 'nbd-client', generate, open: () => NbdClientSubject.open() };
