/** Names that would be paths: every parameter and field of the API that takes a name, with names that lead elsewhere. None
 *  succeeds, none is the daemon's own failure, and no file comes, goes or changes anywhere. */

import fs from 'node:fs';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import { pino } from 'pino';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { Daemon } from '../daemon/daemon.ts';
import { daemonPaths } from '../daemon/paths.ts';
import { MIB } from '../util/units.ts';
import { Client } from './client.ts';
import { serveApi } from './server.ts';
import type { ApiServer } from './server.ts';

const log = pino({ level: 'silent' });
let outer: string;
let state: string;
let image: string;
let daemon: Daemon;
let api: ApiServer;
let client: Client;

beforeAll(async () => {
  outer = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-names-'));
  state = path.join(outer, 'a', 'state');
  fs.mkdirSync(state, { recursive: true });
  image = path.join(outer, 'good.img');
  fs.writeFileSync(image, Buffer.alloc(MIB));
  fs.writeFileSync(path.join(outer, 'victim'), 'untouched');
  const onFatal = (cause: Error): void => {
    throw cause;
  };
  const paths = daemonPaths(state);
  daemon = await Daemon.start({ paths, nbd: null, driver: null, log, onFatal });
  api = await serveApi(paths.apiSocket, daemon, log);
  client = new Client({ dir: state });
  await client.attach({ path: image, name: 'good' });
});
afterAll(async () => {
  await api.close();
  await daemon.stop();
  fs.rmSync(outer, { recursive: true });
});

const NAMES = [
  '..',
  '.',
  '../victim',
  '../../victim',
  'good/../../victim',
  '/etc/passwd',
  '/',
  'a\0b',
  'n'.repeat(4000),
];

/** Everything below, with its content. */
function listing(): string[] {
  const found = fs.readdirSync(outer, { recursive: true, withFileTypes: true });
  return found
    .map((entry) => path.join(entry.parentPath, entry.name))
    .map((file) => (fs.statSync(file).isFile() ? `${file} ${fs.readFileSync(file).toString('base64')}` : file))
    .toSorted();
}

async function ask(method: string, target: string, body: unknown): Promise<number> {
  const headers = { 'content-type': 'application/json' };
  const response = await new Promise<http.IncomingMessage>((resolve, reject) => {
    http
      .request({ socketPath: path.join(state, 'api.sock'), method, path: target, headers }, resolve)
      .once('error', reject)
      .end(body === undefined ? undefined : JSON.stringify(body));
  });
  response.resume();
  return response.statusCode ?? 0;
}

/** Bodies that are right but for the name. */
const BODIES: Record<string, unknown> = {
  'POST /v1/disks/{name}/clients': { client: 'alice' },
  'POST /v1/disks/{name}/cbt/dirty': { ranges: [{ offset: 0, length: 512 }] },
  'POST /v1/disks/{name}/filters': { filter: 'none' },
  'POST /v1/disks/{name}/filters/{filter}/ctl': { command: 'x' },
  'POST /v1/mapped/{name}/load': { table: '0 8 zero' },
  'POST /v1/mapped/{name}/message': { sector: 0, message: 'x' },
  'POST /v1/snapshots/{id}/storage': { limitBytes: MIB },
  'POST /v1/prepared-snapshots/{id}/disks': { disk: 'good' },
};

it('refuses them in every path', async () => {
  const before = listing();
  const document = (await client.openApi()) as { paths: Record<string, Record<string, unknown>> };
  const routes = Object.entries(document.paths).flatMap(([target, methods]) =>
    Object.keys(methods).map((method) => ({ method: method.toUpperCase(), target })),
  );
  const named = routes.filter(({ target }) => target.includes('{'));
  expect(named.length).toBeGreaterThan(25);
  for (const { method, target } of named) {
    for (const parameter of target.match(/\{\w+\}/g) ?? []) {
      for (const name of NAMES) {
        const bad = encodeURIComponent(name).replaceAll('.', '%2E');
        const whole = target.replace(parameter, bad).replaceAll(/\{\w+\}/g, 'good');
        const status = await ask(method, whole, BODIES[`${method} ${target}`]);
        // To take back from somebody what he was never given is no failure.
        const harmless = method === 'DELETE' && parameter === '{client}' && name !== '/';
        expect([400, 404, 409, 422, ...(harmless ? [200] : [])], `${method} ${whole.slice(0, 99)}`).toContain(status);
      }
    }
  }
  expect(listing()).toEqual(before);
}, 60_000);

it('refuses them in every body', async () => {
  const other = path.join(outer, 'other.img');
  fs.writeFileSync(other, Buffer.alloc(MIB));
  const before = listing();
  for (const name of NAMES) {
    const requests: Array<[string, unknown]> = [
      ['/v1/disks', { path: other, name }],
      ['/v1/mounts', { directory: outer, disk: name }],
      ['/v1/mounts', { directory: outer, disk: 'good', point: name }],
      ['/v1/mounts', { directory: outer, disk: 'good', name }],
      ['/v1/mapped', { name, table: '0 8 zero' }],
      ['/v1/snapshots', { disks: [name] }],
      ['/v1/prepared-snapshots', { disks: [name] }],
      ['/v1/disks/good/filters', { filter: name }],
    ];
    for (const [target, body] of requests) {
      expect([400, 404, 409], `${target} ${JSON.stringify(body).slice(0, 99)}`).toContain(
        await ask('POST', target, body),
      );
    }
  }
  for (const name of ['a\0b', 'n'.repeat(4000)])
    expect(await ask('POST', '/v1/disks/good/clients', { client: name })).toBe(400);
  expect(listing()).toEqual(before);
}, 60_000);
