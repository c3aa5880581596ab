/** HTTP to the daemon's API, as it comes over its socket, or over TCP with a token or without: malformed and huge bodies, names
 *  that are paths, names of images, numbers out of range, routes and methods at random, and bytes that are no HTTP. Each gets an
 *  answer that says what was wrong, or none; none is the server's own failure, and none changes what is served or touches a file
 *  outside. Without the token nothing is answered but that it is missing. */

import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { daemonPaths } from '../../../src/daemon/paths.ts';
import { assert } from '../../../src/util/assert.ts';
import { MIB } from '../../../src/util/units.ts';
import { ApiWorld } from '../../api-world.ts';
import type { FuzzSubject, FuzzTarget } from '../target.ts';
import { PLACE, SNAPSHOT, TOKEN, httpRequests } from './api-words.ts';

const ANSWER_MS = 50_000;
const RIGHT_TOKEN = 'a-token-that-nobody-could-have-guessed';
const STRANGERS = ['Bearer wrong', `Basic ${'x'.repeat(60)}`, 'Bearer ', '', `Bearer ${RIGHT_TOKEN.slice(1)}`];
/** Refused, or no HTTP at all; or told to go on with a body that nobody reads. */
const STRANGERS_STATUSES = new Set([100, 400, 401, 408, 413, 417, 431, 505]);

class ApiSubject implements FuzzSubject {
  readonly #world: ApiWorld;
  readonly #snapshot: string;
  readonly #inside: string;
  readonly #before: string[];
  readonly #overTcp: boolean;

  static async open(overTcp: boolean): Promise<ApiSubject> {
    const world = await ApiWorld.open(overTcp ? RIGHT_TOKEN : null);
    const inside = path.join(world.directory, 'given');
    fs.mkdirSync(inside);
    const disk = world.file('given/vm.img', 4 * MIB);
    world.file('given/other.img', MIB);
    fs.writeFileSync(path.join(inside, 'text'), 'not a disk');
    await world.client.attach({ path: disk, name: 'vm' });
    const { id } = await world.client.createSnapshot({ disks: ['vm'] });
    return new ApiSubject(world, id, { inside, overTcp });
  }

  private constructor(
    world: ApiWorld,
    snapshot: string,
    { inside, overTcp }: { readonly inside: string; readonly overTcp: boolean },
  ) {
    this.#world = world;
    this.#snapshot = snapshot;
    this.#inside = inside;
    this.#overTcp = overTcp;
    this.#before = this.#list();
  }

  async run(input: Uint8Array): Promise<void> {
    const text = Buffer.from(input)
      .toString('latin1')
      .replaceAll(SNAPSHOT, this.#snapshot)
      .replaceAll(PLACE, this.#inside)
      .replaceAll(TOKEN, RIGHT_TOKEN);
    // These would be no mistakes; a second request may follow a body without a line's end.
    if (/DELETE \/v1\/(?:disks\/vm|snapshots\/[^ ]*)[ ?]/.test(text) || text.includes('/next')) return;
    const heard = await this.#say(Buffer.from(text, 'latin1'));
    checkAnswers(heard);
    if (this.#overTcp && !text.includes(RIGHT_TOKEN)) checkRefusals(heard);
    const { client } = this.#world;
    for (const { id } of await client.snapshots()) if (id !== this.#snapshot) await client.destroySnapshot(id);
    assert((await client.snapshots()).length === 1, 'the snapshot is still held');
    assert((await client.disk('vm')).name === 'vm', 'the disk is still served');
    assert(this.#list().join('\n') === this.#before.join('\n'), 'no file was touched');
  }

  /** Everything that is answered until the server hangs up; it is told that no more will come. */
  #say(bytes: Uint8Array): Promise<string> {
    return new Promise((resolve, reject) => {
      const socket = this.#connect();
      let heard = '';
      const late = setTimeout(() => reject(new Error(`no answer in ${ANSWER_MS} ms`)), ANSWER_MS);
      const done = (): void => {
        clearTimeout(late);
        socket.destroy();
        resolve(heard);
      };
      socket.setEncoding('latin1');
      socket.on('data', (text: string) => (heard += text));
      // A body that is too long is answered before it ends.
      socket.on('close', done).on('error', done);
      socket.end(bytes);
    });
  }

  #connect(): net.Socket {
    if (!this.#overTcp) return net.connect(daemonPaths(this.#world.directory).apiSocket);
    const { port, hostname } = new URL(this.#world.url);
    return net.connect(Number(port), hostname);
  }

  #list(): string[] {
    return fs.readdirSync(this.#inside, { recursive: true, encoding: 'utf8' }).toSorted();
  }

  async close(): Promise<void> {
    assert((await this.#world.valueAt(await this.#world.uriOf('vm'), 0)) === 0, 'the disk has the content it had');
    await this.#world.close();
  }
}

/** Errors are JSON with a code and words, and none is the server's own. */
function checkAnswers(heard: string): void {
  for (const answer of heard.split(/(?=HTTP\/1\.1 \d{3})/)) {
    const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(answer)?.[1] ?? 0);
    // 505: not HTTP of our time.
    if (status >= 500 && status !== 505) throw new Error(`the server's own failure: ${answer.slice(0, 1000)}`);
    if (!/content-type: application\/json/i.test(answer) || status < 400) continue;
    const body = answer.slice(answer.indexOf('\r\n\r\n') + 4);
    if (body === '') continue; // to HEAD
    const { error } = JSON.parse(body) as { error?: { code?: unknown; message?: unknown } };
    if (typeof error?.code !== 'string' || typeof error.message !== 'string') throw new Error(`no error: ${body}`);
    if (error.message.length > 16_384) throw new Error(`a message of ${error.message.length} characters`);
  }
}

/** Who has not brought the token hears nothing of what there is. */
function checkRefusals(heard: string): void {
  for (const [, status] of heard.matchAll(/HTTP\/1\.1 (\d{3})/g))
    assert(STRANGERS_STATUSES.has(Number(status)), 'a stranger is refused');
  assert(!/vm|given|snapshots/.test(heard), 'a stranger hears nothing of what there is');
}

export const api: FuzzTarget = {
  name: 'api',
  generate: (draw) => httpRequests(draw, null),
  open: () => ApiSubject.open(false),
};

export const apiOverTcp: FuzzTarget = {
  name: 'api-tcp',
  generate: (draw) => httpRequests(draw, draw.chance(0.8) ? [`Bearer ${TOKEN}`] : STRANGERS),
  open: () => ApiSubject.open(true),
};
