/** The API against requests that mean nothing good: malformed and huge bodies, names that are paths, names of
 *  images, numbers out of range, routes and methods at random. Each gets an answer that says what was wrong;
 *  none is the server's own failure, and none changes what is served or touches a file outside.
 *
 *  Seeded: BLKSNAP_SEED=n repeats a run, BLKSNAP_FUZZ_MINUTES=n makes it longer. */

import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { expect, test } from 'vitest';
import { daemonPaths } from '../../src/daemon/paths.ts';
import { Prng } from '../../src/util/prng.ts';
import { MIB } from '../../src/util/units.ts';
import { ApiWorld } from '../api-world.ts';

const SEED = Number(process.env['BLKSNAP_SEED'] ?? Date.now() % 1_000_000);
const RUN_MS = Number(process.env['BLKSNAP_FUZZ_MINUTES'] ?? 0.05) * 60_000;
const ROUTES = [
  '/v1/disks',
  '/v1/disks/{name}',
  '/v1/disks/{name}/resize',
  '/v1/disks/{name}/rescan',
  '/v1/disks/{name}/cbt',
  '/v1/disks/{name}/cbt/map?offset={number}&length={number}',
  '/v1/disks/{name}/cbt/dirty',
  '/v1/disks/{name}/filters',
  '/v1/disks/{name}/filters/{name}',
  '/v1/disks/{name}/filters/{name}/ctl',
  '/v1/mounts',
  '/v1/mapped',
  '/v1/mapped/{name}',
  '/v1/mapped/{name}/load',
  '/v1/mapped/{name}/message',
  '/v1/remaps',
  '/v1/filters',
  '/v1/snapshots',
  '/v1/snapshots/{name}',
  '/v1/snapshots/{name}/storage',
  '/v1/snapshots/{name}/events',
  '/v1/prepared-snapshots',
  '/v1/prepared-snapshots/{name}/disks',
  '/v1/prepared-snapshots/{name}/take',
  '/v1/status',
  '/v1/{name}',
];
const METHODS = ['GET', 'POST', 'DELETE', 'PUT', 'PATCH', 'HEAD'];
const FIELDS =
  'name path directory disk disks point storage limitBytes ranges offset length table text sector filter options'.split(
    ' ',
  );
const NUMBERS = [0, 1, -1, 0.5, 2 ** 31, 2 ** 53, 1e308, 4096];

class Caller {
  readonly #prng: Prng;
  readonly #socketPath: string;
  readonly #names: readonly string[];

  constructor(prng: Prng, socketPath: string, names: readonly string[]) {
    this.#prng = prng;
    this.#socketPath = socketPath;
    this.#names = names;
  }

  one<T>(choices: readonly T[]): T {
    return choices[this.#prng.below(choices.length)]!;
  }

  value(depth = 0): unknown {
    switch (this.#prng.below(depth > 2 ? 4 : 7)) {
      case 0:
        return this.one(NUMBERS);
      case 1:
        return this.one([null, true, false]);
      case 2:
      case 3:
        return this.one(this.#names);
      case 4:
        return Array.from({ length: this.#prng.below(4) }, () => this.value(depth + 1));
      default:
        return this.object(depth + 1);
    }
  }

  /** Of the right shape: what is wrong with it only the daemon can tell. */
  shaped(): Record<string, unknown> {
    const number = (): number => this.one([0, 512, 4096, 2 ** 40, 4 * MIB - 512]);
    const name = (): string => this.one(this.#names);
    return this.one([
      () => ({ path: name(), name: name() }),
      () => ({ directory: name(), disk: name(), name: name() }),
      () => ({ disks: [name(), name()], storage: name(), limitBytes: number() }),
      () => ({ disks: [name()] }),
      () => ({ storage: name(), limitBytes: number() }),
      () => ({ ranges: [{ offset: number(), length: number() }] }),
      () => ({ filter: name(), options: this.value() }),
      () => ({ command: name(), payload: this.value() }),
      () => ({ name: name(), table: name() }),
      () => ({ disk: name(), offset: number(), length: number(), to: name(), at: number() }),
      () => ({ disk: name() }),
      () => ({ sector: number(), text: name() }),
    ])();
  }

  object(depth = 0): Record<string, unknown> {
    const fields = Array.from({ length: this.#prng.below(6) }, () => [this.one(FIELDS), this.value(depth)]);
    return Object.fromEntries(fields);
  }

  route(): string {
    return this.one(ROUTES)
      .replaceAll('{name}', () =>
        this.#prng.chance(0.5)
          ? encodeURIComponent(this.one(this.#names))
          : this.one(['..', '%2e%2e%2f', '%ff', '%00', 'vm']),
      )
      .replaceAll('{number}', () => String(this.one(NUMBERS)));
  }

  body(): string {
    const text = JSON.stringify(
      this.#prng.chance(0.7) ? this.shaped() : this.#prng.chance(0.8) ? this.object() : this.value(),
    );
    switch (this.#prng.below(12)) {
      case 0:
        return text.slice(0, this.#prng.below(text.length));
      case 1:
        return '['.repeat(100_000);
      case 2:
        return `{"name":"${'x'.repeat(8 * MIB)}"}`;
      case 3:
        return '{"__proto__":{"path":"/etc/passwd"},"constructor":1}';
      case 4:
        return '\0\uFFFF{';
      default:
        return text;
    }
  }

  /** Status and body; null when the server hung up on a body that was too long. */
  ask(method: string, route: string, body: string): Promise<{ status: number; text: string } | null> {
    const hasBody = method !== 'GET' && method !== 'HEAD';
    const headers = {
      'content-type': this.one(['application/json', 'application/json', 'text/plain']),
      'content-length': hasBody ? Buffer.byteLength(body) : 0,
    };
    return new Promise((resolve, reject) => {
      const request = http.request({ socketPath: this.#socketPath, path: route, method, headers }, (response) => {
        const parts: Buffer[] = [];
        response.on('data', (part: Buffer) => parts.push(part));
        response.on('end', () => resolve({ status: response.statusCode!, text: Buffer.concat(parts).toString() }));
      });
      request.on('error', (error: NodeJS.ErrnoException) => {
        if (body.length > MIB && (error.code === 'EPIPE' || error.code === 'ECONNRESET')) resolve(null);
        else reject(error);
      });
      request.end(hasBody ? body : undefined);
    });
  }
}

/** What is wrong with the answer, or null. */
function complaint(method: string, { status, text }: { status: number; text: string }): string | null {
  if (status >= 500) return "the server's own failure";
  if (status < 400 || method === 'HEAD') return null;
  try {
    const { error } = JSON.parse(text) as { error?: { code?: unknown; message?: unknown } };
    return typeof error?.code === 'string' && typeof error.message === 'string' ? null : 'not an error as agreed';
  } catch {
    return 'not JSON';
  }
}

function filesOf(directory: string): string[] {
  return fs.readdirSync(directory, { recursive: true }).map(String).toSorted();
}

test(
  `the API answers whatever it is asked (seed ${SEED})`,
  async () => {
    const world = await ApiWorld.open();
    const inside = path.join(world.directory, 'given');
    fs.mkdirSync(inside);
    const disk = world.file('given/vm.img', 4 * MIB);
    world.file('given/other.img', MIB);
    fs.writeFileSync(path.join(inside, 'text'), 'not a disk');
    await world.client.attach({ path: disk, name: 'vm' });
    const { id } = await world.client.createSnapshot({ disks: ['vm'] });
    const images = [`vm@${id}`, `vm@${id}+once`, id, 'vm/1'];
    const odd = [
      '../x',
      'a/b',
      'vm/../vm',
      '',
      '.',
      '..',
      'x'.repeat(300),
      '\u00fc',
      '\u202Evm',
      'vm\0',
      'vm\n',
      '-',
      '@',
    ];
    const special = ['vm', 'other', '__proto__', 'constructor', 'blksnap', '0 8 zero', '0 8 linear vm 0'];
    const paths = [disk, inside, path.join(inside, 'text'), path.join(inside, 'none'), '/dev/null'];
    const names = [...images, ...odd, ...special, ...paths];
    const caller = new Caller(new Prng(SEED), daemonPaths(world.directory).apiSocket, names);
    const before = filesOf(inside);
    const end = Date.now() + RUN_MS;
    while (Date.now() < end) {
      const method = caller.one(METHODS);
      const route = caller.route();
      // That one would be no mistake.
      if (method === 'DELETE' && (route.endsWith('/vm') || route.includes(id))) continue;
      if (route.includes('/next')) continue;
      const body = caller.body();
      const answer = await caller.ask(method, route, body);
      if (answer === null) continue;
      const wrong = complaint(method, answer);
      if (wrong !== null)
        expect.fail(`${wrong}: ${method} ${route} ${body.slice(0, 300)} -> ${answer.status} ${answer.text}`);
      for (const snapshot of await world.client.snapshots()) {
        if (snapshot.id !== id) await world.client.destroySnapshot(snapshot.id);
      }
    }
    expect(filesOf(inside)).toEqual(before);
    expect(await world.valueAt(await world.uriOf('vm'), 0)).toBe(0);
    await world.close();
  },
  RUN_MS + 60_000,
);
