/** The API as a client meets it: a real daemon, a real socket, and requests that no client of ours would send. */

import fs from 'node:fs';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import { pino } from 'pino';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Daemon } from '../daemon/daemon.ts';
import { daemonPaths } from '../daemon/paths.ts';
import { MIB } from '../util/units.ts';
import { Client } from './client.ts';
import { serveApi } from './server.ts';
import type { ApiServer } from './server.ts';

const log = pino({ level: 'silent' });
let directory: string;
let daemon: Daemon;
let api: ApiServer;
let client: Client;

function makeImage(name: string, size: number): string {
  const file = path.join(directory, name);
  fs.writeFileSync(file, '');
  fs.truncateSync(file, size);
  return file;
}

/** A raw request: status and parsed body. */
async function ask(
  method: string,
  target: string,
  body?: string,
  type = 'application/json',
): Promise<{ status: number; body: unknown }> {
  const response = await new Promise<http.IncomingMessage>((resolve, reject) => {
    const headers = body === undefined ? {} : { 'content-type': type };
    http
      .request({ socketPath: path.join(directory, 'api.sock'), method, path: target, headers }, resolve)
      .once('error', reject)
      .end(body);
  });
  let text = '';
  for await (const piece of response) text += String(piece);
  return { status: response.statusCode ?? 0, body: text === '' ? null : JSON.parse(text) };
}

beforeAll(async () => {
  directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-api-'));
  const paths = daemonPaths(directory);
  const onFatal = (cause: Error): void => {
    throw cause;
  };
  daemon = await Daemon.start({ paths, nbd: null, driver: null, log, onFatal });
  api = await serveApi(paths.apiSocket, daemon, log);
  client = new Client({ dir: directory });
});

afterAll(async () => {
  await api.close();
  await daemon.stop();
  expect(fs.readdirSync(directory).filter((name) => name.endsWith('.sock'))).toEqual([]);
  fs.rmSync(directory, { recursive: true });
});

describe('requests that are wrong', () => {
  it.each([
    ['POST', '/v1/disks', '{', /JSON/],
    ['POST', '/v1/disks', '{}', /path: /],
    ['POST', '/v1/disks', '{"path":"relative"}', /path: want an absolute path/],
    ['POST', '/v1/disks', '{"path":"/x","readonly":true}', /readonly/],
    ['POST', '/v1/disks', '{"path":"/x","direct":"yes"}', /direct: /],
    ['POST', '/v1/snapshots', '{"disks":[]}', /disks: name at least one disk/],
    ['POST', '/v1/snapshots', '{"disks":["d"],"limitBytes":-1}', /limitBytes: /],
    ['POST', '/v1/snapshots', '{"disks":["d"],"limitBytes":1.5}', /limitBytes: /],
    ['POST', '/v1/snapshots', '{"disks":["d"],"storage":"here"}', /storage: want an absolute path or :memory:/],
    ['POST', '/v1/snapshots', '{"disks":["d"],"hooks":{"freeze":"true"}}', /hooks: want freeze and thaw/],
    ['POST', '/v1/snapshots', '{"disks":["d"],"hooks":{"thaw":"true","timeoutMs":9}}', /hooks: want freeze and thaw/],
    ['POST', '/v1/snapshots', '{"disks":["d"],"hooks":{"timeoutMs":0}}', /hooks\.timeoutMs: /],
    ['POST', '/v1/disks/d/cbt/dirty', '{"ranges":[{"offset":-1,"length":1}]}', /ranges\.0\.offset: /],
    ['GET', '/v1/disks/d/cbt/map?offset=x', undefined, /offset: /],
    ['GET', '/v1/snapshots/s/events?timeoutMs=9999999', undefined, /timeoutMs: /],
  ])('%s %s %s names the field', async (method, target, body, words) => {
    const answer = await ask(method, target, body);
    expect(answer).toMatchObject({
      status: 400,
      body: { error: { code: 'EINVAL', message: expect.stringMatching(words) } },
    });
  });

  it('a body that is no JSON by its type', async () => {
    expect(await ask('POST', '/v1/disks', 'path=/x', 'text/plain')).toMatchObject({
      status: 400,
      body: { error: { code: 'EINVAL' } },
    });
  });

  it('a body without end', async () => {
    const body = JSON.stringify({ path: '/x', name: 'n'.repeat(5 * MIB) });
    expect(await ask('POST', '/v1/disks', body)).toMatchObject({ status: 413, body: { error: { code: 'EFBIG' } } });
  });

  it('a place that is not there', async () => {
    expect(await ask('GET', '/v2/disks')).toMatchObject({
      status: 404,
      body: { error: { message: expect.stringMatching(/openapi/) } },
    });
    expect(await ask('GET', '/v1/disks/none')).toMatchObject({ status: 404, body: { error: { code: 'ENOENT' } } });
    expect(await ask('DELETE', '/v1/snapshots/none')).toMatchObject({
      status: 404,
      body: { error: { code: 'ESRCH' } },
    });
    expect(await ask('GET', '/v1/snapshots/none/events')).toMatchObject({
      status: 404,
      body: { error: { code: 'ESRCH' } },
    });
  });
});

describe('disks that cannot be attached', () => {
  it.each([
    ['missing', (): string => path.join(directory, 'missing'), 'ENOENT'],
    ['a directory', (): string => directory, 'EISDIR'],
    ['empty', (): string => makeImage('empty.img', 0), 'EINVAL'],
    ['not a multiple of 512', (): string => makeImage('odd.img', 1000), 'EINVAL'],
    ['a character device', (): string => '/dev/null', 'EINVAL'],
  ])('%s', async (_what, make, code) => {
    await expect(client.attach({ path: make() })).rejects.toMatchObject({ code });
    expect(await client.disks()).toEqual([]);
  });

  it('under a name that is none', async () => {
    const file = makeImage('good.img', MIB);
    for (const name of ['a/b', '.hidden', 'x'.repeat(200), 'a@b']) {
      await expect(client.attach({ path: file, name })).rejects.toMatchObject({ code: 'EINVAL' });
    }
  });

  it('attached already, by this or another name of the file', async () => {
    const file = makeImage('twice.img', MIB);
    const other = makeImage('other.img', MIB);
    const link = path.join(directory, 'link.img');
    fs.symlinkSync(file, link);
    await client.attach({ path: file });
    await expect(client.attach({ path: file, name: 'b' })).rejects.toMatchObject({
      code: 'EALREADY',
      message: /as "twice"/,
    });
    await expect(client.attach({ path: link, name: 'b' })).rejects.toMatchObject({ code: 'EALREADY' });
    await expect(client.attach({ path: other, name: 'twice' })).rejects.toMatchObject({
      code: 'EEXIST',
      message: /--name/,
    });
    await client.detach('twice');
    expect(await client.disks()).toEqual([]);
  });

  it('only once, when asked for by many at once', async () => {
    const file = makeImage('race.img', MIB);
    const results = await Promise.allSettled([1, 2, 3, 4].map((i) => client.attach({ path: file, name: `race${i}` })));
    expect(results.filter(({ status }) => status === 'fulfilled').length).toBe(1);
    const [disk] = await client.disks();
    await client.detach(disk!.name);
  });
});

describe('a disk', () => {
  it('tells of itself, its changes and its snapshots', async () => {
    const file = makeImage('disk.img', MIB);
    const disk = await client.attach({ path: file });
    expect(disk).toMatchObject({ name: 'disk', kind: 'disk', state: 'attached', size: MIB, failure: null });
    expect(disk.uri).toBe(`nbd+unix:///disk?socket=${directory}/nbd.sock`);
    expect(await client.disk('disk')).toEqual(disk);

    await client.markDirty('disk', { ranges: [{ offset: 0, length: 65_537 }] });
    const snapshot = await client.createSnapshot({ disks: ['disk'], storage: ':memory:' });
    expect(snapshot).toMatchObject({
      limitBytes: null,
      storagePath: ':memory:',
      images: [{ disk: 'disk', changeNumber: 1 }],
    });
    expect(await client.snapshots()).toEqual([await client.snapshot(snapshot.id)]);
    expect([...(await client.cbtMap('disk'))].slice(0, 3)).toEqual([1, 1, 0]);
    expect(await client.cbt('disk')).toMatchObject({ changeNumber: 2, blockSize: 65_536, blockCount: 16 });
    await expect(client.detach('disk')).rejects.toMatchObject({ code: 'EBUSY' });

    expect(await client.events(snapshot.id)).toEqual([]);
    const waiting = client.events(snapshot.id, { timeoutMs: 30_000 });
    await client.destroySnapshot(snapshot.id);
    await expect(waiting).rejects.toMatchObject({ code: 'ESRCH' });
    await client.detach('disk');
    expect(await client.status()).toMatchObject({ disks: 0, snapshots: 0, failedDisks: 0, pid: process.pid });
  });

  it('is not snapshotted twice at once, nor with one that is not there', async () => {
    await client.attach({ path: makeImage('one.img', MIB) });
    await expect(client.createSnapshot({ disks: ['one', 'one'] })).rejects.toMatchObject({
      code: 'EINVAL',
      message: /twice/,
    });
    await expect(client.createSnapshot({ disks: ['one', 'two'] })).rejects.toMatchObject({
      code: 'ENOENT',
      message: /there are one/,
    });
    expect(await client.snapshots()).toEqual([]);
    await client.detach('one');
  });

  it('is not snapshotted to storage that cannot be used', async () => {
    const file = makeImage('origin.img', MIB);
    await client.attach({ path: file });
    const create = (storage: string) => client.createSnapshot({ disks: ['origin'], storage });
    await expect(create('/nonexistent/place')).rejects.toMatchObject({ code: 'ENOENT' });
    await expect(create(file)).rejects.toMatchObject({ code: expect.stringMatching(/EINVAL|EEXIST|EBUSY/) });
    expect(await client.snapshots()).toEqual([]);
    await client.detach('origin');
  });
});

describe('the stream of events', () => {
  it('begins at once and ends with the snapshot', async () => {
    await client.attach({ path: makeImage('stream.img', MIB) });
    const { id } = await client.createSnapshot({ disks: ['stream'], storage: ':memory:' });
    const seen: unknown[] = [];
    const following = (async () => {
      for await (const event of client.follow(id)) seen.push(event);
    })();
    await new Promise((resolve) => setTimeout(resolve, 50));
    await client.destroySnapshot(id);
    await following;
    expect(seen).toEqual([]);
    await expect(client.follow(id).next()).rejects.toMatchObject({ code: 'ESRCH' });
    await client.detach('stream');
  });
});

describe('the document', () => {
  it('has every route, and the shapes that validate', async () => {
    const document = (await client.openApi()) as {
      openapi: string;
      paths: Record<string, object>;
      components: { schemas: object };
    };
    expect(document.openapi).toBe('3.1.0');
    expect(Object.keys(document.paths).sort()).toEqual([
      '/v1/disks',
      '/v1/disks/{name}',
      '/v1/disks/{name}/cbt',
      '/v1/disks/{name}/cbt/dirty',
      '/v1/disks/{name}/cbt/map',
      '/v1/disks/{name}/clients',
      '/v1/disks/{name}/clients/{client}',
      '/v1/disks/{name}/filters',
      '/v1/disks/{name}/filters/{filter}',
      '/v1/disks/{name}/filters/{filter}/ctl',
      '/v1/disks/{name}/rescan',
      '/v1/disks/{name}/resize',
      '/v1/filters',
      '/v1/mapped',
      '/v1/mapped/{name}',
      '/v1/mapped/{name}/load',
      '/v1/mapped/{name}/message',
      '/v1/mapped/{name}/resume',
      '/v1/mapped/{name}/suspend',
      '/v1/mounts',
      '/v1/prepared-snapshots',
      '/v1/prepared-snapshots/{id}',
      '/v1/prepared-snapshots/{id}/disks',
      '/v1/prepared-snapshots/{id}/take',
      '/v1/remaps',
      '/v1/snapshots',
      '/v1/snapshots/{id}',
      '/v1/snapshots/{id}/events',
      '/v1/snapshots/{id}/events/next',
      '/v1/snapshots/{id}/renew',
      '/v1/snapshots/{id}/storage',
      '/v1/status',
    ]);
    expect(document.components.schemas).toHaveProperty('AttachRequest.additionalProperties', false);
  });
});

it('says how to start a daemon where there is none', async () => {
  const elsewhere = new Client({ dir: path.join(directory, 'elsewhere') });
  await expect(elsewhere.status()).rejects.toMatchObject({
    code: 'ECONNREFUSED',
    message: `no daemon at ${directory}/elsewhere; start one with \`blksnap daemon\``,
  });
});
