import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { isClientName, provenName, userPeer } from './peer.ts';
import { loadClientCredentials, loadServerCredentials } from './tls-credentials.ts';

const KEY = 'c0ffee00c0ffee00c0ffee00c0ffee00';
let dir: string;
beforeEach(() => {
  dir = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-keys-'));
});
afterEach(() => fs.rmSync(dir, { recursive: true }));

function keys(text: string, mode = 0o600): string {
  const file = path.join(dir, 'keys.psk');
  fs.writeFileSync(file, text, { mode });
  return file;
}

function message(run: () => unknown): string {
  try {
    run();
    return 'no error';
  } catch (cause) {
    return (cause as Error).message;
  }
}

describe('pre-shared keys', () => {
  it('are read by name', () => {
    const psk = keys(`# who: key\nalice:${KEY}\n\nuser@host:${KEY}${KEY}\n`);
    const loaded = loadServerCredentials({ psk });
    expect(loaded?.kind === 'psk' && [...loaded.keys.keys()]).toEqual(['alice', 'user@host']);
    expect(loadClientCredentials({ psk }, 'alice')).toMatchObject({ name: 'alice', key: Buffer.from(KEY, 'hex') });
    expect(loadClientCredentials({ psk: keys(`only:${KEY}`) })).toMatchObject({ name: 'only' });
  });

  it.each([
    [`alice:${KEY}\nalice:${KEY}`, /line 2 .* second key of "alice"/],
    ['alice:abcd', /a key of 2 bytes, want 16 to 256/],
    [`alice:${'a'.repeat(600)}`, /300 bytes/],
    [`alice:${KEY}f`, /NAME:HEX/],
    [`alice:${KEY}zz`, /NAME:HEX/],
    [KEY, /NAME:HEX/],
    [`:${KEY}`, /NAME:HEX/],
    [`uid:0:${KEY}`, /NAME:HEX/],
    ['\n', /there is none/],
  ])('%j is refused by its place, without a word of the key', (text, words) => {
    const said = message(() => loadServerCredentials({ psk: keys(text) }));
    expect(said).toMatch(words);
    expect(said).not.toContain('c0ffee');
  });

  it.each([0o644, 0o640, 0o606])('that others can read (mode %o) are refused', (mode) => {
    const psk = keys(`alice:${KEY}`);
    fs.chmodSync(psk, mode);
    expect(() => loadServerCredentials({ psk })).toThrow(/want 0600/);
  });

  it('of several need a name, of a file that has it', () => {
    const psk = keys(`alice:${KEY}\nbob:${KEY}`);
    expect(() => loadClientCredentials({ psk })).toThrow(/it has 2; name one/);
    expect(() => loadClientCredentials({ psk }, 'carol')).toThrow(/Cannot find the key "carol"/);
  });
});

it('certificates and keys exclude each other, and verification needs certificates', () => {
  expect(() => loadServerCredentials({ certificates: dir, psk: dir })).toThrow(/at once/);
  expect(() => loadServerCredentials({ verifyPeer: true, psk: dir })).toThrow(/--tls-verify-peer needs/);
  expect(() => loadServerCredentials({ certificates: dir })).toThrow(/server-cert\.pem/);
  expect(loadServerCredentials({})).toBeNull();
});

it.each([
  ['alice', true],
  ['Backup server 1', true],
  ['z\u00fcrich', true],
  ['', false],
  [' alice', false],
  ['alice ', false],
  ['a\nb', false],
  ['a\u0000b', false],
  ['a\u202eb', false],
  ['x'.repeat(129), false],
])('%j as the name of a client: %s', (name, good) => {
  expect(isClientName(name)).toBe(good);
});

it('no certificate passes for a user of the machine', () => {
  expect([provenName('uid:0'), provenName(['a', 'b']), provenName(undefined)]).toEqual([null, null, null]);
  const own = process.getuid!();
  expect([userPeer(own), userPeer(0), userPeer(own + 1), userPeer(-1)]).toEqual([
    { kind: 'owner' },
    { kind: 'owner' },
    { kind: 'named', name: `uid:${own + 1}` },
    { kind: 'named', name: 'uid:-1' },
  ]);
});
