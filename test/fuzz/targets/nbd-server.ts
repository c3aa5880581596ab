/** What clients send to the NBD server, as one stream that ends; and somebody else's disk beside it, served meanwhile.
 *
 *  What the server answers must be well-formed: to requests that nobody could have sent, it may close the connection, but it
 *  must not babble. After each client all that it took is given back. */

import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { BioPool } from '../../../src/block/bio.ts';
import { MemoryDevice } from '../../../src/block/memory-device.ts';
import { openReactor } from '../../../src/io/open.ts';
import type { Reactor } from '../../../src/io/reactor.ts';
import type { MetaContext, NbdExport } from '../../../src/nbd/export.ts';
import { NbdServer } from '../../../src/nbd/server.ts';
import { assert } from '../../../src/util/assert.ts';
import { KIB, MIB } from '../../../src/util/units.ts';
import { settled } from '../settled.ts';
import type { FuzzSubject, FuzzTarget } from '../target.ts';
import { conversation } from './nbd-words.ts';
import { checkServerWords } from './nbd-replies.ts';

const DISK_BYTES = 256 * KIB;
/** What is kept of an answer: a client that asks much must not cost this process much. */
const HEARD_BYTES = 4 * MIB;
/** More extents than anybody wants to hear of. */
const STRIPES: MetaContext = {
  name: 'test:stripes',
  blockStatus: async () => Array.from({ length: 50_000 }, (_, index) => ({ length: 4, flags: index & 1 })),
};

export class NbdServerSubject implements FuzzSubject {
  readonly #reactor: Reactor;
  readonly #pool = new BioPool();
  readonly #directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-fuzz-nbd-'));
  readonly socket = path.join(this.#directory, 'nbd.sock');
  readonly #server: NbdServer;
  readonly #devices: readonly MemoryDevice[];
  readonly #lentBytes: number;

  static async open(): Promise<NbdServerSubject> {
    const subject = new NbdServerSubject(await openReactor({ arenaBytes: 8 * MIB, cooperative: true }));
    await subject.#server.listen({ kind: 'unix', path: subject.socket });
    return subject;
  }

  private constructor(reactor: Reactor) {
    this.#reactor = reactor;
    const victim = new MemoryDevice('victim', DISK_BYTES, reactor.arena);
    const fixed = new MemoryDevice('fixed', DISK_BYTES, reactor.arena, { readOnly: true });
    this.#devices = [victim, fixed];
    const exports = new Map<string, NbdExport>(
      this.#devices.map((device) => [
        device.name,
        {
          name: device.name,
          description: 'a disk',
          device,
          contexts: (query) => (query === '' || STRIPES.name.startsWith(query) ? [STRIPES] : []),
        },
      ]),
    );
    this.#server = new NbdServer({
      reactor,
      pool: this.#pool,
      exports: { find: (name) => exports.get(name), list: () => exports.values() },
    });
    this.#lentBytes = reactor.arena.lentBytes;
  }

  async run(input: Uint8Array): Promise<void> {
    const socket = net.connect({ path: this.socket, allowHalfOpen: true });
    const parts: Buffer[] = [];
    let heard = 0;
    socket.on('data', (part: Buffer) => {
      heard += part.length;
      if (heard < HEARD_BYTES) parts.push(part);
    });
    // The server may close before it has heard all.
    const closed = new Promise<void>((resolve) => {
      socket
        .once('end', resolve)
        .once('error', () => resolve())
        .once('close', () => resolve());
    });
    await once(socket, 'connect');
    socket.end(input);
    await closed;
    socket.destroy();
    checkServerWords(Buffer.concat(parts));
    await settled('the server has given everything back', () => this.#isIdle);
  }

  get #isIdle(): boolean {
    return this.#server.connections === 0 && this.#pool.lent === 0 && this.#reactor.arena.lentBytes === this.#lentBytes;
  }

  async close(): Promise<void> {
    await this.#server.close();
    for (const device of this.#devices) await device.close();
    assert(this.#reactor.arena.lentBytes === 0 && this.#pool.lent === 0, 'nothing is left of any client');
    await this.#reactor.close();
    fs.rmSync(this.#directory, { recursive: true });
  }
}

export const nbdServer: FuzzTarget = {
  name: 'nbd-server',
  generate: (draw) => conversation(draw, DISK_BYTES),
  open: () => NbdServerSubject.open(),
};
