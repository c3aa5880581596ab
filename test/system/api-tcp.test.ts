/** The API over TCP, as a daemon and the command line offer and use it: the token, TLS, what is refused, what the secrets
 *  show of themselves. */

import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { Client } from '../../src/api/client.ts';
import { SnapshotSession } from '../../src/api/session.ts';
import { KIB, MIB } from '../../src/util/units.ts';
import { DaemonWorld, blksnap, fill } from '../daemon/world.ts';
import { requirePrograms } from '../requirements.ts';

const EVERYTHING = ['--log-level', 'trace'];
let world: DaemonWorld;
let tokenFile: string;

beforeEach(() => {
  world = new DaemonWorld();
  tokenFile = world.file('token');
});
afterEach(async () => {
  await world.close();
});

/** Starts the daemon with the API on a free port of loopback; returns its URL. */
async function offer(...options: readonly string[]): Promise<string> {
  await world.start('--api-tcp', '127.0.0.1:0', '--api-token', tokenFile, ...EVERYTHING, ...options);
  await expect.poll(() => world.daemon!.stderr).toMatch(/"apiTcp"/);
  return /"apiTcp":"([^"]+)"/.exec(world.daemon!.stderr)![1]!;
}

/** What a stranger hears. */
async function ask(url: string, authorization?: string): Promise<{ status: number; said: string }> {
  const headers = authorization === undefined ? {} : { authorization };
  const response = await new Promise<http.IncomingMessage>((resolve, reject) => {
    http.get(`${url}/v1/disks`, { headers, agent: false }, resolve).once('error', reject);
  });
  let said = '';
  for await (const piece of response) said += String(piece);
  return { status: response.statusCode ?? 0, said };
}

/** A connection on which somebody says what they like; what is heard until its end. */
function talk(url: string): { readonly socket: net.Socket; readonly heard: Promise<string> } {
  const { hostname, port } = new URL(url);
  const socket = net.connect(Number(port), hostname);
  let heard = '';
  socket.on('data', (data) => (heard += String(data))).on('error', () => {});
  return { socket, heard: new Promise((resolve) => void socket.once('close', () => resolve(heard))) };
}

function request(line: string, token: string, body = ''): string {
  return `${line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${token}\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
}

function makeCertificates(): string {
  const dir = world.file('pki');
  fs.mkdirSync(dir, { mode: 0o700 });
  const script = `set -e; cd ${dir}; umask 077; NEW="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc"
    openssl req -x509 $NEW -days 9 -subj /CN=authority -keyout ca-key.pem -out ca-cert.pem
    openssl req $NEW -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout server-key.pem -out csr
    openssl x509 -req -in csr -CA ca-cert.pem -CAkey ca-key.pem -copy_extensions copyall -days 9 -out server-cert.pem`;
  execFileSync('bash', ['-c', script], { stdio: 'pipe' });
  return dir;
}

/** Nothing that a program shows of itself holds the secret. */
async function expectUnseen(secret: string): Promise<void> {
  expect(secret.length).toBeGreaterThan(20);
  const { pid } = world.daemon!.child;
  for (const shown of ['cmdline', 'environ']) {
    expect(fs.readFileSync(`/proc/${pid}/${shown}`, 'latin1')).not.toContain(secret);
  }
  const { stdout, stderr } = await world.stop();
  expect(stderr).toMatch(/"msg":"ended"/);
  expect(stdout + stderr).not.toContain(secret);
}

it('is for those who bring the token, and tells others nothing', async () => {
  const url = await offer(world.image('one.img', MIB));
  expect(fs.statSync(tokenFile).mode & 0o777).toBe(0o600);
  const token = fs.readFileSync(tokenFile, 'utf8').trim();
  const began = performance.now();
  const wrong = [
    undefined,
    'Bearer',
    `Bearer ${token}x`,
    `Bearer ${token.slice(1)}`,
    `Basic ${token}`,
    'Bearer \u00e9',
  ];
  const refused = await Promise.all(wrong.map((authorization) => ask(url, authorization)));
  expect(performance.now() - began).toBeGreaterThan(490);
  for (const { status, said } of refused) {
    expect(status).toBe(401);
    expect(said).not.toMatch(/one|disks|openapi/);
  }
  expect(await ask(url, `Bearer ${token}`)).toMatchObject({ status: 200, said: expect.stringContaining('one.img') });
  await expectUnseen(token);
});

it('hears nothing that comes behind a wrong token', async () => {
  const url = await offer(world.image('one.img', MIB));
  const token = fs.readFileSync(tokenFile, 'utf8').trim();
  const detach = request('DELETE /v1/disks/one', token);
  const said: Array<[string, RegExp]> = [
    [request('GET /v1/disks', 'wrong') + detach, /^401$/],
    [request('POST /v1/disks', 'wrong', detach) + detach, /^401$/],
    [request('GET /v1/disks', token) + request('GET /v1/status', 'wrong') + detach, /^200 401$/],
  ];
  for (const [words, answers] of said) {
    const { socket, heard } = talk(url);
    socket.write(words);
    expect([...(await heard).matchAll(/HTTP\/1\.1 (\d+) /g)].map(([, status]) => status).join(' ')).toMatch(answers);
  }
  expect((await world.client.disk('one')).name).toBe('one');
});

it('does not take a body without the token', async () => {
  const url = await offer();
  const { socket, heard } = talk(url);
  let ended = false;
  void heard.then(() => (ended = true));
  const announced = 256 * MIB;
  socket.write(
    `POST /v1/disks HTTP/1.1\r\nhost: x\r\nauthorization: Bearer wrong\r\ncontent-length: ${announced}\r\n\r\n`,
  );
  const piece = Buffer.alloc(64 * KIB, 'x');
  let taken = 0;
  while (!ended && taken < announced) {
    if (socket.write(piece)) taken += piece.length;
    else
      await Promise.race([
        once(socket, 'drain').then(
          () => (taken += piece.length),
          () => {},
        ),
        heard,
      ]);
  }
  expect(await heard).toMatch(/^HTTP\/1\.1 401 /);
  // What the system's own buffers hold.
  expect(taken).toBeLessThan(32 * MIB);
});

it('does over TLS what it does on the socket: leases, events, the command line', async (context) => {
  requirePrograms(context, 'openssl');
  const pki = makeCertificates();
  const key = fs.readFileSync(`${pki}/server-key.pem`, 'utf8').split('\n')[1]!;
  const url = await offer('--tls-certificates', pki, world.image('one.img', 8 * MIB, 8 * MIB));
  expect(url).toMatch(/^https:/);
  const client = new Client({ url, tokenFile, caFile: `${pki}/ca-cert.pem` });
  const session = await SnapshotSession.open(client, { disks: ['one'], leaseMs: 60_000 });
  expect((await client.renewSnapshot(session.id)).leaseMs).toBe(60_000);
  await session.close();
  expect(await client.snapshots()).toEqual([]);
  // A snapshot whose storage is too small for what is written breaks, and the stream tells it.
  const { id } = await client.createSnapshot({ disks: ['one'], storage: ':memory:', limitBytes: MIB });
  await fill((await client.disk('one')).uri, 0, 4 * MIB, 7);
  const codes: string[] = [];
  for await (const { code } of client.follow(id)) {
    codes.push(code);
    if (code === 'corrupted') break;
  }
  expect(codes).toContain('corrupted');
  await client.destroySnapshot(id);
  await expect(new Client({ url, tokenFile }).disks()).rejects.toThrow(/--api-ca/);
  expect(() => client.nbdSocket).toThrow(expect.objectContaining({ code: 'EOPNOTSUPP' }));

  const api = ['--api', url, '--api-token', tokenFile, '--api-ca', `${pki}/ca-cert.pem`];
  expect(await blksnap('list', ...api)).toMatchObject({ code: 0, stdout: expect.stringContaining('one') });
  expect((await blksnap('backup', 'one', '--to', world.file('backup'), ...api)).stderr).toMatch(/daemon's machine/);
  expect(await client.snapshots()).toEqual([]);
  const other = world.file('other');
  fs.writeFileSync(other, 'another-token-of-enough-characters-to-be-one\n', { mode: 0o600 });
  expect((await blksnap('list', '--api', url, '--api-token', other, ...api.slice(4))).stderr).toMatch(/its token/);
  await expectUnseen(key);
});

it('is refused where the token would go in plain, or be none', async () => {
  const daemon = ['daemon', '--dir', world.dir];
  const withToken = ['--api-token', tokenFile];
  const open = await blksnap(...daemon, '--api-tcp', '0.0.0.0:0', ...withToken);
  expect(open).toMatchObject({ code: 2, stderr: expect.stringMatching(/--tls-certificates/) });
  const none = await blksnap(...daemon, '--api-tcp', '127.0.0.1:0');
  expect(none).toMatchObject({ code: 2, stderr: expect.stringMatching(/--api-token/) });
  expect(fs.existsSync(tokenFile)).toBe(false);
  const secret = 'a-secret-that-everybody-on-this-machine-can-read';
  fs.writeFileSync(tokenFile, secret, { mode: 0o644 });
  const shared = await blksnap(...daemon, '--api-tcp', '127.0.0.1:0', ...withToken);
  expect(shared).toMatchObject({ code: 1, stderr: expect.stringMatching(/0600/) });
  expect(shared.stderr).not.toContain(secret);
  fs.writeFileSync(tokenFile, 'short');
  fs.chmodSync(tokenFile, 0o600);
  expect((await blksnap(...daemon, '--api-tcp', '127.0.0.1:0', ...withToken)).stderr).toMatch(/32 characters/);
  const plain = await blksnap('list', '--api', 'http://192.0.2.1:1', ...withToken);
  expect(plain).toMatchObject({ code: 2, stderr: expect.stringMatching(/want https/) });
  expect((await blksnap('list', '--api', 'https://127.0.0.1:1')).stderr).toMatch(/--api-token/);
});

it('holds so many connections, and the socket stays free', async () => {
  const url = new URL(await offer());
  const sockets = Array.from({ length: 300 }, () => net.connect(Number(url.port), url.hostname));
  let closed = 0;
  for (const socket of sockets) socket.on('error', () => {}).on('close', () => (closed += 1));
  await expect.poll(() => closed).toBeGreaterThanOrEqual(300 - 256);
  expect((await world.client.status()).disks).toBe(0);
  expect(closed).toBe(300 - 256);
  for (const socket of sockets) socket.destroy();
});
