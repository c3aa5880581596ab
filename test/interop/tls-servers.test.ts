/** Our client over TLS against other people's servers: with a certificate of its own, with a pre-shared key, and refused
 *  where it has none or one of somebody else's. */

import { execFileSync, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import type { TestContext } from 'vitest';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { BioPool, READ, WRITE, runBio } from '../../src/block/bio.ts';
import { openReactor } from '../../src/io/open.ts';
import type { Reactor } from '../../src/io/reactor.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { parseNbdUri } from '../../src/nbd/uri.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { freePort } from '../free-port.ts';
import { requirePrograms } from '../requirements.ts';

const SIZE = 4 * MIB;
const PROGRAM = { qemu: 'qemu-nbd', nbdkit: 'nbdkit' } as const;
let dir: string;
let reactor: Reactor;
let server: ChildProcess | null;

beforeEach(async () => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-tls-servers-'));
  reactor = await openReactor({ arenaBytes: 16 * MIB, cooperative: true });
  server = null;
  fs.writeFileSync(path.join(dir, 'disk.img'), Buffer.alloc(SIZE, 3));
});
afterEach(async () => {
  if (server !== null && server.exitCode === null && server.signalCode === null) {
    const exited = once(server, 'exit');
    server.kill();
    await exited;
  }
  expect(reactor.arena.lentBytes).toBe(0);
  await reactor.close();
  fs.rmSync(dir, { recursive: true });
});

/** An authority, a server and a client of it, in a directory. */
function makeCertificates(name: string): string {
  const pki = path.join(dir, name);
  fs.mkdirSync(pki, { mode: 0o700 });
  const script = `set -e; cd ${pki}; umask 077; NEW="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc"
    SIGN="openssl x509 -req -CA ca-cert.pem -CAkey ca-key.pem -copy_extensions copyall -days 9"
    openssl req -x509 $NEW -days 9 -subj "/CN=${name}" -keyout ca-key.pem -out ca-cert.pem
    openssl req $NEW -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext extendedKeyUsage=serverAuth -keyout server-key.pem -out csr
    $SIGN -in csr -out server-cert.pem
    openssl req $NEW -subj /CN=alice -addext extendedKeyUsage=clientAuth -keyout client-key.pem -out csr
    $SIGN -in csr -out client-cert.pem`;
  execFileSync('bash', ['-c', script], { stdio: 'pipe' });
  return pki;
}

/** Starts the server with its options for TLS; returns its port. */
async function start(kind: keyof typeof PROGRAM, tls: readonly string[]): Promise<number> {
  const port = await freePort();
  const image = path.join(dir, 'disk.img');
  const args =
    kind === 'qemu'
      ? [...tls, '--tls-creds', 'tls0', '-f', 'raw', '-x', 'disk', '-t', '-b', '127.0.0.1', '-p', String(port), image]
      : ['--foreground', '--ipaddr', '127.0.0.1', '--port', String(port), '--tls=require', ...tls, 'file', image];
  const child = spawn(PROGRAM[kind], args, { stdio: ['ignore', 'ignore', 'pipe'] });
  server = child;
  let said = '';
  child.stderr.on('data', (data: Buffer) => (said += data.toString()));
  const answers = (): Promise<boolean> =>
    new Promise((resolve) => {
      const probe = net.connect(port, '127.0.0.1');
      probe.on('error', () => resolve(false)).on('connect', () => probe.end(() => resolve(true)));
    });
  await expect.poll(() => (child.exitCode === null ? answers() : said), { interval: 50 }).toBe(true);
  return port;
}

/** Writes and reads back; an error for who may not. */
async function use(uri: string): Promise<string> {
  const pool = new BioPool();
  const at = reactor.arena.allocate(64 * KIB);
  try {
    const device = await NbdClient.connect({ reactor, ...parseNbdUri(uri) });
    reactor.arena.bytes.fill(9, at, at + 64 * KIB);
    const written = await runBio(pool, device, { op: WRITE, offset: MIB, length: 64 * KIB, at });
    const read = await runBio(pool, device, { op: READ, offset: MIB - 4 * KIB, length: 8 * KIB, at });
    const seen = `${reactor.arena.bytes[at]} ${reactor.arena.bytes[at + 4 * KIB]}`;
    await device.close();
    return written + read === 0 ? seen : `errno ${written}, ${read}`;
  } catch (cause) {
    return (cause as { code: string }).code;
  } finally {
    reactor.arena.release(at);
  }
}

const REFUSED = /^(?:EACCES|ECONNRESET|EPROTO|EIO)$/;

describe.each(['qemu', 'nbdkit'] as const)('%s', (kind) => {
  it('takes our certificate, and nobody without one of its authority', async (context: TestContext) => {
    requirePrograms(context, PROGRAM[kind], 'openssl');
    const [ours, others] = [makeCertificates('ours'), makeCertificates('others')];
    const nameless = path.join(dir, 'nameless');
    fs.mkdirSync(nameless);
    fs.copyFileSync(path.join(ours, 'ca-cert.pem'), path.join(nameless, 'ca-cert.pem'));
    const port = await start(
      kind,
      kind === 'qemu'
        ? ['--object', `tls-creds-x509,id=tls0,dir=${ours},endpoint=server,verify-peer=yes`]
        : [`--tls-certificates=${ours}`, '--tls-verify-peer'],
    );
    const uri = (host: string, pki: string): string => `nbds://${host}:${port}/disk?tls-certificates=${pki}`;
    expect(await use(uri('localhost', ours))).toBe('3 9');
    expect(await use(uri('127.0.0.1', ours))).toBe('3 9');
    expect(await use(uri('localhost', nameless))).toMatch(REFUSED);
    expect(await use(uri('localhost', others))).toMatch(REFUSED);
    expect(await use(`${uri('localhost', ours)}&tls-hostname=elsewhere`)).toMatch(REFUSED);
    expect(await use(`nbd://localhost:${port}/disk`)).toBe('EOPNOTSUPP');
  });

  it('takes our pre-shared key, and no other', async (context: TestContext) => {
    requirePrograms(context, PROGRAM[kind]);
    const keys = path.join(dir, 'keys.psk');
    const other = path.join(dir, 'other.psk');
    fs.writeFileSync(keys, `alice:${'0123456789abcdef'.repeat(4)}\n`, { mode: 0o600 });
    fs.writeFileSync(other, `alice:${'fedcba9876543210'.repeat(4)}\n`, { mode: 0o600 });
    const port = await start(
      kind,
      kind === 'qemu' ? ['--object', `tls-creds-psk,id=tls0,dir=${dir},endpoint=server`] : [`--tls-psk=${keys}`],
    );
    expect(await use(`nbds://alice@localhost:${port}/disk?tls-psk-file=${keys}`)).toBe('3 9');
    expect(await use(`nbds://alice@localhost:${port}/disk?tls-psk-file=${other}`)).toMatch(REFUSED);
    expect(await use(`nbd://localhost:${port}/disk`)).toBe('EOPNOTSUPP');
  });
});
