/** `npx tsx test/fuzz/record.ts`: records what real NBD clients say to our server, and real servers to our client, as
 *  inputs of the corpus. Done by hand when there is a client or a server worth having; needs qemu-utils, libnbd-bin, nbd-client
 *  and nbdkit. */

import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { openReactor } from '../../src/io/open.ts';
import { formatNbdUri } from '../../src/nbd/uri.ts';
import { keep } from './corpus.ts';
import { useEnemy } from './targets/nbd-client.ts';
import { NbdServerSubject } from './targets/nbd-server.ts';

const run = promisify(execFile);
const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-record-'));

/** A socket that passes everything on to another, and hands over what went either way of each connection. */
class Proxy {
  readonly socket: string;
  readonly sent: Buffer[] = [];
  readonly received: Buffer[] = [];
  readonly #server: net.Server;

  constructor(to: string, name: string) {
    this.socket = path.join(directory, `${name}.proxy`);
    this.#server = net.createServer({ allowHalfOpen: true }, (client) => {
      const there = net.connect({ path: to, allowHalfOpen: true });
      const index = this.sent.push(Buffer.alloc(0)) - 1;
      this.received.push(Buffer.alloc(0));
      const add = (list: Buffer[], part: Buffer): void => void (list[index] = Buffer.concat([list[index]!, part]));
      client.on('data', (part: Buffer) => add(this.sent, part)).pipe(there);
      there.on('data', (part: Buffer) => add(this.received, part)).pipe(client);
      for (const end of [client, there]) end.on('error', () => end.destroy());
    });
    this.#server.listen(this.socket);
  }

  uri(exportName: string): string {
    return formatNbdUri({ address: { kind: 'unix', path: this.socket }, exportName });
  }

  close(): void {
    this.#server.close();
  }
}

/** Our server, and a client that is started with the address of the proxy before it. */
async function recordClient(name: string, program: string, args: (proxy: Proxy) => readonly string[]): Promise<void> {
  const subject = await NbdServerSubject.open();
  const proxy = new Proxy(subject.socket, name);
  try {
    await run(program, args(proxy));
  } catch (cause) {
    console.log(`${name}: ${String(cause).split('\n')[0]}`);
  }
  proxy.close();
  const recordings = proxy.sent.filter(({ length }) => length > 4);
  for (const [index, bytes] of recordings.entries())
    console.log(keep('nbd-server', bytes, `recorded-${name}${recordings.length === 1 ? '' : `-${index + 1}`}`));
  await subject.close();
}

/** Somebody else's server, and our client. */
async function recordServer(name: string, program: string, args: (socket: string) => readonly string[]): Promise<void> {
  const socket = path.join(directory, `${name}.sock`);
  const server = spawn(program, args(socket), { stdio: 'ignore' });
  const ended = once(server, 'exit');
  while (!fs.existsSync(socket)) await sleep(20);
  const proxy = new Proxy(socket, name);
  const reactor = await openReactor({ cooperative: true });
  await useEnemy(reactor, { kind: 'unix', path: proxy.socket });
  await reactor.close();
  proxy.close();
  server.kill();
  await ended;
  for (const bytes of proxy.received.slice(0, 1)) console.log(keep('nbd-client', bytes, `recorded-${name}`));
}

const out = path.join(directory, 'out.raw');
const disk = path.join(directory, 'disk.raw');
fs.writeFileSync(disk, Buffer.alloc(1024 * 1024, 3));
fs.truncateSync(disk, 1024 * 1024 + 512 * 1024);
const commands = [
  'write -P 5 0 4k',
  'write -z 8k 64k',
  'discard 128k 64k',
  'flush',
  'write -f -P 6 512 1k',
  'read 0 64k',
];
await recordClient('qemu-img-info', 'qemu-img', (proxy) => ['info', proxy.uri('victim')]);
await recordClient('qemu-img-convert-from', 'qemu-img', (proxy) => ['convert', '-O', 'raw', proxy.uri('victim'), out]);
await recordClient('qemu-img-convert-to', 'qemu-img', (proxy) => [
  'convert',
  '-n',
  '-O',
  'raw',
  out,
  proxy.uri('victim'),
]);
await recordClient('qemu-io', 'qemu-io', (proxy) => [
  '-f',
  'raw',
  ...commands.flatMap((each) => ['-c', each]),
  proxy.uri('victim'),
]);
await recordClient('nbdinfo-list', 'nbdinfo', (proxy) => ['--list', proxy.uri('')]);
await recordClient('nbdinfo-map', 'nbdinfo', (proxy) => ['--map=test:stripes', proxy.uri('victim')]);
await recordClient('nbdcopy-from', 'nbdcopy', (proxy) => ['--connections=2', proxy.uri('victim'), out]);
await recordClient('nbdcopy-to', 'nbdcopy', (proxy) => ['--destination-is-zero', out, proxy.uri('victim')]);
await recordClient('nbd-client-list', 'nbd-client', (proxy) => ['-l', '-unix', proxy.socket]);
await recordServer('qemu-nbd', 'qemu-nbd', (socket) => ['-k', socket, '-x', 'victim', '-f', 'raw', '-A', disk]);
await recordServer('nbdkit', 'nbdkit', (socket) => ['-f', '-U', socket, 'memory', '1536K']);
await recordServer('nbdkit-simple', 'nbdkit', (socket) => ['-f', '--no-sr', '-U', socket, 'pattern', '1536K']);
fs.rmSync(directory, { recursive: true });
process.exit(0);
