/** What comes to the server's port where TLS is asked for: any words before TLS, and words that TLS protects.
 *
 *      0 and then: bytes as they are
 *      1, a name, 0, and then: a client that knows the key of that name, or thinks so, and says the rest inside TLS
 *      2, who, 0, and then: the same with a certificate: alice's, mallory's (who calls herself alice, of an authority of her
 *          own), or none
 *
 *  Whoever does not prove a name comes no further, and hears nothing but refusals; what is said inside arrives as it was said. */

import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import type { Duplex } from 'node:stream';
import tls from 'node:tls';
import type { Visitor } from '../../../src/nbd/server.ts';
import { requestStartTls } from '../../../src/nbd/start-tls.ts';
import { loadServerCredentials, MIN_TLS_VERSION, PSK_CIPHERS } from '../../../src/nbd/tls-credentials.ts';
import { TlsFront } from '../../../src/nbd/tls-front.ts';
import { Message } from '../../../src/nbd/wire.ts';
import { assert } from '../../../src/util/assert.ts';
import { KIB } from '../../../src/util/units.ts';
import { openDescriptors } from '../../contracts/reactor-bench.ts';
import { EDGES } from '../draw.ts';
import type { Draw } from '../draw.ts';
import { settled } from '../settled.ts';
import type { FuzzSubject, FuzzTarget } from '../target.ts';

const KEY = Buffer.alloc(32, 7);
const NAMES = ['alice', 'bob'];
const CERTIFIED = new Set(['alice', 'mallory']);
const BY_KEY = 1;
const BY_CERTIFICATE = 2;
const PKI = path.join(import.meta.dirname, '../pki');
const GREETING_BYTES = 18;
const REPLY_BYTES = 20;
const STARTTLS = 5;
const ABORT = 2;
const ACK = 1;
const REFUSALS = new Set([0x8000_0005, 0x8000_0003]);
/** Of a reply to an option; no TLS record begins so. */
const REPLY_MAGIC = Buffer.from('0003e889045565a9', 'hex');
/** The first byte of a TLS alert record. */
const ALERT = 21;

class FrontSubject implements FuzzSubject {
  readonly #directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-fuzz-tls-'));
  readonly #socket = path.join(this.#directory, 'tls.sock');
  readonly #certifiedSocket = path.join(this.#directory, 'certified.sock');
  readonly #fronts: TlsFront[] = [];
  #descriptors = 0;
  readonly #visitors: Visitor[] = [];

  static async open(): Promise<FrontSubject> {
    const subject = new FrontSubject();
    const keys = new Map(NAMES.map((name) => [name, KEY]));
    const onClient = (visitor: Visitor): void => void subject.#visitors.push(visitor);
    await subject.#listen(subject.#socket, { credentials: { kind: 'psk', keys }, onClient });
    // Others may read what git has checked out.
    const certificates = path.join(subject.#directory, 'pki');
    fs.cpSync(PKI, certificates, { recursive: true });
    for (const name of fs.readdirSync(certificates)) fs.chmodSync(path.join(certificates, name), 0o600);
    const credentials = loadServerCredentials({ certificates, verifyPeer: true })!;
    await subject.#listen(subject.#certifiedSocket, { credentials, onClient });
    await subject.#raw(Buffer.alloc(0));
    subject.#descriptors = openDescriptors();
    return subject;
  }

  async #listen(socket: string, options: Parameters<typeof TlsFront.listen>[1]): Promise<void> {
    this.#fronts.push(await TlsFront.listen({ kind: 'unix', path: socket }, options));
  }

  async run(input: Uint8Array): Promise<void> {
    const bytes = Buffer.from(input);
    if (bytes[0] === BY_KEY || bytes[0] === BY_CERTIFICATE) {
      const end = bytes.indexOf(0, 1);
      const name = bytes.subarray(1, Math.max(end, 1)).toString('latin1');
      const words = end < 0 ? Buffer.alloc(0) : bytes.subarray(end + 1);
      if (bytes[0] === BY_KEY) await this.#within(byKey(name), words, NAMES.includes(name) ? name : null);
      else await this.#within(byCertificate(name), words, name === 'alice' ? name : null);
    } else {
      checkWordsBeforeTls(await this.#raw(bytes.subarray(1)));
      assert(this.#visitors.length === 0, 'nobody comes in without a proof');
    }
    await settled('every descriptor is closed', () => openDescriptors() <= this.#descriptors);
  }

  async #raw(bytes: Uint8Array): Promise<Buffer> {
    const socket = net.connect({ path: this.#socket, allowHalfOpen: true });
    const heard = collected(socket);
    await once(socket, 'connect');
    socket.end(bytes);
    const words = await heard;
    socket.destroy();
    return words;
  }

  /** `known`: the name that is proved, or null. */
  async #within(options: tls.ConnectionOptions, words: Buffer, known: string | null): Promise<void> {
    const socket = net.connect({ path: options.pskCallback === undefined ? this.#certifiedSocket : this.#socket });
    socket.on('error', () => {});
    await once(socket, 'connect');
    await requestStartTls(socket);
    const secure = tls.connect({
      ...options,
      socket,
      minVersion: MIN_TLS_VERSION,
      checkServerIdentity: () => undefined,
    });
    const gone = new Promise<void>(
      (resolve) => void secure.on('error', () => resolve()).once('close', () => resolve()),
    );
    secure.resume().end(words);
    await settled('the front lets the client in, or cuts it off', () => this.#visitors.length > 0 || socket.destroyed);
    const visitor = this.#visitors.pop();
    assert((visitor !== undefined) === (known !== null), 'who proves a name comes in, and nobody else');
    if (visitor !== undefined) await this.#checkVisitor(visitor, { name: known!, words });
    await gone;
    socket.destroy();
  }

  async #checkVisitor(
    { fd, peer, received }: Visitor,
    said: { readonly name: string; readonly words: Buffer },
  ): Promise<void> {
    assert(peer.kind === 'named' && peer.name === said.name, 'a client has the name that it has proved');
    const plain = new net.Socket({ fd, readable: true, writable: true, allowHalfOpen: true });
    const heard = Buffer.concat([received, await collected(plain)]);
    assert(heard.equals(said.words), 'what is said inside TLS arrives');
    plain.destroy();
  }

  async close(): Promise<void> {
    for (const front of this.#fronts) await front.close();
    fs.rmSync(this.#directory, { recursive: true });
  }
}

function byKey(name: string): tls.ConnectionOptions {
  return { ciphers: PSK_CIPHERS, pskCallback: () => ({ identity: name, psk: KEY }) };
}

function byCertificate(who: string): tls.ConnectionOptions {
  const read = (file: string): Buffer => fs.readFileSync(path.join(PKI, file));
  const own = CERTIFIED.has(who) ? { cert: read(`${who}-cert.pem`), key: read(`${who}-key.pem`) } : {};
  return { ...own, ca: read('ca-cert.pem') };
}

/** All that comes until the other side has said its last. */
function collected(socket: Duplex): Promise<Buffer> {
  const parts: Buffer[] = [];
  socket.on('data', (part: Buffer) => void parts.push(part));
  return new Promise((resolve) => {
    const done = (): void => resolve(Buffer.concat(parts));
    socket.once('end', done).once('error', done).once('close', done);
  });
}

/** A greeting, then refusals, at most one consent; then only alerts. */
function checkWordsBeforeTls(words: Buffer): void {
  let agreed = false;
  for (let at = GREETING_BYTES; at < words.length;) {
    if (agreed) {
      assert(words[at] === ALERT, 'nothing but alerts follows a consent to TLS');
      return;
    }
    assert(words.length - at >= REPLY_BYTES && words.subarray(at, at + 8).equals(REPLY_MAGIC), 'a reply is whole');
    const [asked, type, length] = [8, 12, 16].map((offset) => words.readUInt32BE(at + offset));
    if (type === ACK) {
      assert(asked === STARTTLS || asked === ABORT, 'nothing but TLS and an end is granted');
      assert(length === 0, 'a consent says nothing else');
      agreed = asked === STARTTLS;
    } else assert(REFUSALS.has(type!), 'everything else is refused');
    at += REPLY_BYTES + length!;
  }
}

function option(draw: Draw, number: number): Message {
  const data = draw.chance(0.8) ? new Uint8Array(0) : draw.noise(draw.below(100));
  const length = draw.chance(0.05) ? draw.one(EDGES) : data.length;
  return new Message().text('IHAVEOPT').u32(number).u32(length).raw(data);
}

function record(draw: Draw): Message {
  const body = draw.noise(draw.below(600));
  const length = draw.chance(0.9) ? body.length : draw.below(65_536);
  return new Message()
    .raw(Uint8Array.of(draw.one([20, 21, 22, 22, 22, 23, 24]), 3, draw.below(5)))
    .u16(length)
    .raw(body);
}

function generate(draw: Draw): Uint8Array {
  if (draw.chance(0.2)) {
    const byKeys = draw.chance(0.6);
    const name = byKeys
      ? draw.one(['alice', 'alice', 'bob', 'nobody', 'ALICE', '../alice', 'x'.repeat(300)])
      : draw.one(['alice', 'alice', 'mallory', 'nobody']);
    return Buffer.concat([
      Buffer.from(`${byKeys ? '\u0001' : '\u0002'}${name}\0`, 'latin1'),
      draw.noise(draw.below(draw.chance(0.2) ? 200 * KIB : 2000)),
    ]);
  }
  const parts = [new Message().raw(Uint8Array.of(0)).u32(draw.chance(0.95) ? draw.one([1, 3]) : draw.below(256))];
  parts.push(
    ...draw.list(draw.chance(0.05) ? 40 : 3, () => option(draw, draw.one([1, 2, 3, 5, 5, 6, 7, 8, 10, 11, 99]))),
  );
  if (draw.chance(0.7)) parts.push(new Message().text('IHAVEOPT').u32(STARTTLS).u32(0));
  parts.push(...draw.list(3, () => record(draw)));
  return Buffer.concat(parts.map(({ bytes }) => bytes));
}

export const tlsFront: FuzzTarget = { name: 'tls-front', generate, open: () => FrontSubject.open() };
