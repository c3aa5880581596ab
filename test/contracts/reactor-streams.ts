/** The reactor contract, part two: streams, over unix sockets, TCP and pipes. */

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { Listener, Reactor, SocketAddress, Stream } from '../../src/io/reactor.ts';
import { openListener } from '../../src/io/uring/sockets.ts';
import { ERRNO } from '../../src/util/errors.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { requirePrograms } from '../requirements.ts';
import { endsLater, reactorBench } from './reactor-bench.ts';
import type { Bench, OpenReactor } from './reactor-bench.ts';

/** The next stream that a listener accepts. */
async function listen(
  reactor: Reactor,
  address: SocketAddress,
): Promise<{ listener: Listener; accepted: Promise<Stream> }> {
  let accept: (stream: Stream) => void;
  const accepted = new Promise<Stream>((resolve) => (accept = resolve));
  const listener = await reactor.listen(address, {}, (stream) => accept(stream));
  return { listener, accepted };
}

export function streamContract(open: OpenReactor): void {
  const bench = reactorBench(open);
  const opened: Array<{ close(): void }> = [];
  afterEach(() => {
    for (const each of opened.splice(0)) each.close();
  });

  const pair = async (kind: SocketAddress['kind'], name = 'socket'): Promise<[Stream, Stream]> => {
    const { reactor, dir } = bench();
    const address: SocketAddress =
      kind === 'unix' ? { kind, path: path.join(dir, name) } : { kind, host: '127.0.0.1', port: 0 };
    const { listener, accepted } = await listen(reactor, address);
    const client = await reactor.connect(listener.address);
    const server = await accepted;
    opened.push(listener, client, server);
    return [client, server];
  };

  const send = (stream: Stream, at: number, length: number): Promise<number> => {
    expect(stream.queue(at, length)).toBe(true);
    return bench().run((c) => stream.send(c));
  };

  describe.each(['unix', 'tcp'] as const)('%s sockets', (kind) => {
    it('carry bytes both ways', async () => {
      const { memory, bytes, run } = bench();
      const [client, server] = await pair(kind);
      const [a, b] = [memory(4096), memory(4096)];
      bytes(a, 5).set(Buffer.from('hello'));
      const received = run((c) => server.receive(b, 4096, c));
      expect(await send(client, a, 5)).toBe(5);
      expect(await received).toBe(5);
      expect(Buffer.from(bytes(b, 5)).toString()).toBe('hello');
      expect(await send(server, b, 4)).toBe(4);
      expect(await run((c) => client.receiveAll(a, 4, c))).toBe(4);
      expect(Buffer.from(bytes(a, 4)).toString()).toBe('hell');
    });

    it('gives its descriptor to whoever adopts it, or says that it cannot', async () => {
      const { reactor, memory, bytes, run } = bench();
      const [client, server] = await pair(kind);
      const [a, b] = [memory(4096), memory(4096)];
      bytes(a, 5).set(Buffer.from('hello'));
      await send(client, a, 5);
      expect(await run((c) => server.receive(b, 2, c))).toBe(2);
      const fd = server.release();
      expect(fd >= 0).toBe(reactor.driver === 'uring');
      if (fd >= 0) server.close(); // The descriptor is no longer its own.
      const adopted = fd < 0 ? server : reactor.adopt(fd, fd);
      opened.push(adopted);
      expect(await run((c) => adopted.receiveAll(b + 2, 3, c))).toBe(3);
      expect(Buffer.from(bytes(b, 5)).toString()).toBe('hello');
      expect(await send(adopted, b, 5)).toBe(5);
      expect(await run((c) => client.receiveAll(a, 5, c))).toBe(5);
    });

    it('tell the user at the other end, where there is one', async () => {
      const [, server] = await pair(kind);
      expect(server.peerUid()).toBe(kind === 'unix' && bench().reactor.driver !== 'sim' ? process.getuid!() : -1);
    });

    it('receiveAll waits for all, and gives 0 when the stream ends first', async () => {
      const { memory, bytes, run } = bench();
      const [client, server] = await pair(kind);
      const [a, b] = [memory(4096), memory(4096)];
      let ended = false;
      const received = run((c) => server.receiveAll(b, 100, c)).finally(() => (ended = true));
      bytes(a, 100).fill(9);
      await send(client, a, 60);
      await new Promise((resolve) => setTimeout(resolve, 20));
      expect(ended).toBe(false);
      await send(client, a, 40);
      expect(await received).toBe(100);
      expect(bytes(b, 100).every((byte) => byte === 9)).toBe(true);
      const short = run((c) => server.receiveAll(b, 100, c));
      await send(client, a, 99);
      client.close();
      expect(await short).toBe(0);
    });

    it('move more than the socket buffers hold, in both directions at once', async () => {
      const [client, server] = await pair(kind);
      const total = 24 * MIB;
      const [up, down] = await Promise.all([
        transfer(bench(), client, server, total, 1),
        transfer(bench(), server, client, total, 2),
      ]);
      expect([up, down]).toEqual([total, total]);
    });

    it('receive what was sent before the end, then 0', async () => {
      const { memory, run } = bench();
      const [client, server] = await pair(kind);
      const at = memory(4096);
      await send(client, at, 100);
      client.close();
      expect(await run((c) => server.receiveAll(at, 100, c))).toBe(100);
      expect(await run((c) => server.receive(at, 100, c))).toBe(0);
    });

    it('keep what arrives when nothing is being received, in order', async () => {
      const { memory, bytes, run } = bench();
      const [client, server] = await pair(kind);
      const total = 150_000;
      const [a, b] = [memory(total), memory(total)];
      for (let i = 0; i < total; i++) bytes(a, total)[i] = (i * 7 + (i >> 8)) & 0xff;
      for (let round = 0; round < 3; round++) {
        bytes(b, total).fill(0);
        expect(await send(client, a, total)).toBe(total);
        await new Promise((resolve) => setTimeout(resolve, 10));
        for (let received = 0, length = 1; received < total; length = length * 3 + 1) {
          const most = Math.min(length, total - received);
          expect(await run((c) => server.receiveAll(b + received, most, c))).toBe(most);
          received += most;
        }
        expect(Buffer.compare(bytes(a, total), bytes(b, total))).toBe(0);
      }
    });

    it('write only to memory that is being received to', async () => {
      const { memory, bytes, run } = bench();
      const [client, server] = await pair(kind);
      const [a, b] = [memory(4096), memory(4096)];
      bytes(a, 4096).fill(1);
      bytes(b, 4096).fill(0);
      const received = run((c) => server.receive(b, 4096, c));
      await send(client, a, 100);
      expect(await received).toBe(100);
      await send(client, a, 4096);
      await new Promise((resolve) => setTimeout(resolve, 10));
      expect(bytes(b, 4096).lastIndexOf(1)).toBe(99);
      expect(await run((c) => server.receiveAll(b, 4096, c))).toBe(4096);
      bytes(b, 4096).fill(0);
      const cancelled = run((c) => server.receiveAll(b, 4096, c));
      await send(client, a, 10);
      await new Promise((resolve) => setTimeout(resolve, 10));
      server.close();
      client.queue(a, 4096);
      await run((c) => client.send(c));
      expect(await cancelled).toBe(-ERRNO.ECANCELED);
      expect(bytes(b, 4096).lastIndexOf(1)).toBeLessThan(10);
    });

    it('keep what one has not received yet apart from what arrives on another', async () => {
      const { memory, bytes, run } = bench();
      const [one, other] = [await pair(kind, 'one'), await pair(kind, 'other')];
      const [a, b] = [memory(4096), memory(4096)];
      const first = run((c) => one[1].receive(b, 10, c));
      bytes(a, 4096).fill(1);
      await send(one[0], a, 4096);
      expect(await first).toBe(10);
      const second = run((c) => other[1].receive(b, 10, c));
      bytes(a, 4096).fill(2);
      await send(other[0], a, 4096);
      expect(await second).toBe(10);
      expect(await run((c) => one[1].receiveAll(b, 4086, c))).toBe(4086);
      expect(bytes(b, 4086).every((each) => each === 1)).toBe(true);
    });

    it('keep apart what several of them send and receive', async () => {
      const { memory, bytes, run } = bench();
      const [piece, rounds] = [100_000, 12];
      const pairs = await Promise.all([0, 1, 2, 3].map((i) => pair(kind, `socket-${i}`)));
      const ends = pairs.flatMap(([client, server], i) => [
        { from: client, to: server, byte: i + 1 },
        { from: server, to: client, byte: i + 101 },
      ]);
      await Promise.all(
        ends
          .map(async ({ from, byte }) => {
            const at = memory(piece);
            bytes(at, piece).fill(byte);
            for (let i = 0; i < rounds; i++) {
              for (let segment = 0; segment < 4; segment++) from.queue(at, piece / 4);
              expect(await run((c) => from.send(c))).toBe(piece);
            }
          })
          .concat(
            // Later: what the sockets' buffers do not hold has to wait.
            ends.map(async ({ to, byte }) => {
              const at = memory(piece);
              await new Promise((resolve) => setTimeout(resolve, 20));
              for (let left = piece * rounds; left > 0; left -= 30_000) {
                expect(await run((c) => to.receiveAll(at, 30_000, c))).toBe(30_000);
                expect(bytes(at, 30_000).every((each) => each === byte)).toBe(true);
              }
            }),
          ),
      );
    });

    it('end operations under way when closed', async () => {
      const { memory, run } = bench();
      const [client, server] = await pair(kind);
      const [a, b] = [memory(4096), memory(8 * MIB)];
      const receiving = run((c) => client.receive(a, 4096, c));
      expect(client.queue(b, 8 * MIB)).toBe(true);
      const sending = run((c) => client.send(c)); // nobody reads it
      await new Promise((resolve) => setTimeout(resolve, 20));
      client.close();
      client.close();
      expect(await receiving).toBe(-ERRNO.ECANCELED);
      expect(await sending).toBeLessThan(0);
      server.close();
    });

    it('report an error when sending to a peer that has gone', async () => {
      const { memory, run } = bench();
      const [client, server] = await pair(kind);
      const at = memory(64 * KIB);
      server.close();
      let result = 0;
      for (let i = 0; i < 100 && result >= 0; i++) {
        client.queue(at, 64 * KIB);
        result = await run((c) => client.send(c));
      }
      expect([-ERRNO.EPIPE, -ERRNO.ECONNRESET]).toContain(result);
    });

    it('send many segments in order, and say when the list is full', async () => {
      const { memory, bytes, run } = bench();
      const [client, server] = await pair(kind);
      const [a, b] = [memory(4096), memory(4096)];
      for (let i = 0; i < 256; i++) bytes(a, 4096)[i] = i;
      let queued = 0;
      while (queued < 100_000 && client.queue(a + (queued % 256), 1)) queued++;
      expect(queued).toBeGreaterThan(64);
      expect(queued).toBeLessThan(100_000);
      const sent = run((c) => client.send(c));
      expect(client.queue(a + 7, 1)).toBe(true); // belongs to the next send
      expect(await run((c) => server.receiveAll(b, queued, c))).toBe(queued);
      expect(await sent).toBe(queued);
      const inOrder = bytes(b, queued).every((byte, i) => byte === i % 256);
      expect(inOrder).toBe(true);
      expect(await run((c) => client.send(c))).toBe(1);
      expect(await run((c) => server.receive(b, 10, c))).toBe(1);
      expect(bytes(b, 1)[0]).toBe(7);
    });

    it('hold a client back that is not read', async () => {
      const { memory, run } = bench();
      const [client, server] = await pair(kind);
      const at = memory(MIB);
      let ended = 0;
      let failed = false;
      const flood = (async () => {
        for (let i = 0; i < 64 && !failed; i++) {
          client.queue(at, MIB);
          failed = (await run((c) => client.send(c))) < 0;
          if (!failed) ended++;
        }
      })();
      await new Promise((resolve) => setTimeout(resolve, 150));
      expect(ended).toBeLessThan(32);
      server.close();
      await flood;
    });

    it('never complete before the starting call returns', async () => {
      const { memory } = bench();
      const [client, server] = await pair(kind);
      const at = memory(4096);
      client.queue(at, 100);
      expect(await endsLater((c) => client.send(c))).toBe(100);
      await new Promise((resolve) => setTimeout(resolve, 10));
      expect(await endsLater((c) => server.receive(at, 50, c))).toBe(50);
      expect(await endsLater((c) => server.receiveAll(at, 50, c))).toBe(50);
    });
  });

  it('TCP sockets ask a silent peer whether it is still there', async (context) => {
    requirePrograms(context, 'ss');
    const { reactor } = bench();
    const { listener, accepted } = await listen(reactor, { kind: 'tcp', host: '127.0.0.1', port: 0 });
    opened.push(listener, await reactor.connect(listener.address), await accepted);
    const { port } = listener.address as { port: number };
    const sockets = execFileSync('ss', ['-tnHo', 'state', 'established', `( sport = :${port} or dport = :${port} )`]);
    // Both ends.
    expect(sockets.toString().match(/timer:\(keepalive,(?:5\ds|1min)/g)).toHaveLength(2);
  });

  describe('listeners', () => {
    it('make a socket file of mode 0600, and remove it', async () => {
      const { reactor, dir } = bench();
      const file = path.join(dir, 'socket');
      const listener = await reactor.listen({ kind: 'unix', path: file }, {}, () => {});
      expect(fs.statSync(file).mode & 0o777).toBe(0o600);
      await expect(reactor.listen({ kind: 'unix', path: file }, {}, () => {})).rejects.toMatchObject({
        code: 'EADDRINUSE',
      });
      expect(fs.existsSync(file)).toBe(true);
      listener.close();
      listener.close();
      expect(fs.existsSync(file)).toBe(false);
      const wide = await reactor.listen({ kind: 'unix', path: file }, { mode: 0o666 }, () => {});
      expect(fs.statSync(file).mode & 0o777).toBe(0o666);
      wide.close();
    });

    it('refuse a socket path that is too long', async () => {
      const { reactor, dir } = bench();
      const address = { kind: 'unix', path: path.join(dir, 'x'.repeat(120)) } as const;
      await expect(reactor.listen(address, {}, () => {})).rejects.toMatchObject({ code: 'ENAMETOOLONG' });
      await expect(reactor.connect(address)).rejects.toMatchObject({ code: 'ENAMETOOLONG' });
    });

    it('give the port that the system chose', async () => {
      const { reactor } = bench();
      const listener = await reactor.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 }, {}, () => {});
      const { address } = listener;
      expect(address.kind === 'tcp' && address.port).toBeGreaterThan(0);
      await expect(reactor.listen(address, {}, () => {})).rejects.toMatchObject({ code: 'EADDRINUSE' });
      listener.close();
      await expect(reactor.connect(address)).rejects.toMatchObject({ code: 'ECONNREFUSED' });
    });

    it('say why a connection failed', async () => {
      const { reactor, dir } = bench();
      const missing = { kind: 'unix', path: path.join(dir, 'none') } as const;
      await expect(reactor.connect(missing)).rejects.toMatchObject({ code: 'ENOENT' });
      await expect(
        reactor.listen({ kind: 'unix', path: path.join(dir, 'no', 'x') }, {}, () => {}),
      ).rejects.toMatchObject({
        name: 'BlksnapError',
      });
    });

    it('accept many connections', async () => {
      const { reactor, dir, memory, run } = bench();
      const servers: Stream[] = [];
      const address = { kind: 'unix', path: path.join(dir, 'socket') } as const;
      const listener = await reactor.listen(address, {}, (stream) => servers.push(stream));
      const clients = await Promise.all(Array.from({ length: 40 }, () => reactor.connect(address)));
      await expect.poll(() => servers.length).toBe(40);
      opened.push(listener, ...clients, ...servers);
      const at = memory(4096);
      for (const client of clients) expect(await send(client, at, 8)).toBe(8);
      for (const server of servers) expect(await run((c) => server.receiveAll(at, 8, c))).toBe(8);
    });

    it('take over a listening socket', async () => {
      const { reactor, dir } = bench();
      const handed = openListener({ kind: 'unix', path: path.join(dir, 'activated') }, 0o600);
      let accept: (stream: Stream) => void;
      const accepted = new Promise<Stream>((resolve) => (accept = resolve));
      const listener = await reactor.listenFd(handed.fd, (stream) => accept(stream));
      opened.push(listener, await reactor.connect(handed.address));
      opened.push(await accepted);
      listener.close();
      expect(fs.existsSync(path.join(dir, 'activated'))).toBe(true); // its maker's
    });
  });

  describe('adopted descriptors', () => {
    it('a pipe pair is one stream', async () => {
      const { reactor, dir, memory, bytes, run } = bench();
      const [there, back] = [path.join(dir, 'there'), path.join(dir, 'back')];
      const child = spawn('sh', ['-c', `mkfifo ${there} ${back}; echo; cat <${there} >${back}`], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      await once(child.stdout, 'data');
      const writeFd = fs.openSync(there, 'r+');
      const readFd = fs.openSync(back, 'r+');
      const stream = reactor.adopt(readFd, writeFd);
      const [a, b] = [memory(MIB), memory(MIB)];
      bytes(a, MIB).fill(0x31);
      bytes(b, MIB).fill(0);
      const received = run((c) => stream.receiveAll(b, MIB, c));
      expect(await send(stream, a, MIB)).toBe(MIB);
      expect(await received).toBe(MIB);
      expect(bytes(b, MIB).every((byte) => byte === 0x31)).toBe(true);
      const pending = run((c) => stream.receive(b, 10, c));
      stream.close();
      expect(await pending).toBeLessThan(0);
      await once(child, 'exit');
    });
  });
}

/** Sends `total` patterned bytes one way in uneven pieces and checks each on the other side. */
async function transfer(bench: Bench, from: Stream, to: Stream, total: number, seed: number): Promise<number> {
  const piece = 3 * MIB;
  const [out, into] = [bench.memory(piece), bench.memory(256 * KIB)];
  const source = bench.bytes(out, piece);
  for (let i = 0; i < piece; i++) source[i] = (i * 31 + (i >> 12) * seed) & 0xff;
  const sending = (async () => {
    for (let sent = 0; sent < total;) {
      from.queue(out, 1000);
      from.queue(out + 1000, piece - 1000);
      const result = await bench.run((c) => from.send(c));
      expect(result).toBe(piece);
      sent += result;
    }
  })();
  let received = 0;
  while (received < total) {
    const count = await bench.run((c) => to.receive(into, Math.min(256 * KIB, total - received), c));
    expect(count).toBeGreaterThan(0);
    for (let done = 0; done < count;) {
      const place = (received + done) % piece;
      const length = Math.min(count - done, piece - place);
      const equal = Buffer.from(bench.bytes(into + done, length)).equals(source.subarray(place, place + length));
      expect(equal).toBe(true);
      done += length;
    }
    received += count;
  }
  await sending;
  return received;
}
