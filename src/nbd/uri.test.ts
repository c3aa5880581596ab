import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatNbdUri, parseNbdUri } from './uri.ts';

describe('NBD URIs', () => {
  it.each([
    ['nbd://example.com:10810/disk', { kind: 'tcp', host: 'example.com', port: 10810 }, 'disk'],
    ['nbd://example.com', { kind: 'tcp', host: 'example.com', port: 10809 }, ''],
    ['nbd://example.com/', { kind: 'tcp', host: 'example.com', port: 10809 }, ''],
    ['nbd://example.com//disk', { kind: 'tcp', host: 'example.com', port: 10809 }, '/disk'],
    ['nbd://user@example.com/hello%20world', { kind: 'tcp', host: 'example.com', port: 10809 }, 'hello world'],
    ['nbd://[::1]:1/a/../b', { kind: 'tcp', host: '::1', port: 1 }, 'a/../b'],
    ['nbd+unix:///disk?socket=/tmp/a%20b.sock', { kind: 'unix', path: '/tmp/a b.sock' }, 'disk'],
    ['nbd+unix:///?socket=nbd.sock', { kind: 'unix', path: 'nbd.sock' }, ''],
    ['NBD+UNIX:///?socket=a+b=c&x-note=1', { kind: 'unix', path: 'a+b=c' }, ''],
  ])('reads %s', (uri, address, exportName) => {
    expect(parseNbdUri(uri)).toEqual({ address, exportName });
  });

  it.each([
    ['nbds://example.com/disk', {}],
    ['nbds://al%20ice@example.com/disk?tls-psk-file=/k.psk', { pskName: 'al ice', psk: '/k.psk' }],
    ['nbds://example.com/disk?tls-certificates=/pki&tls-hostname=other', { certificates: '/pki', hostname: 'other' }],
    ['nbds+unix://alice@/disk?socket=/s&tls-psk-file=/k.psk', { pskName: 'alice', psk: '/k.psk' }],
  ])('reads the TLS of %s', (uri, tls) => {
    expect(parseNbdUri(uri)).toMatchObject({ exportName: 'disk', tls });
    expect(Object.keys(parseNbdUri(uri).tls!)).toEqual(Object.keys(tls));
  });

  it.each([
    ['disk.img', /not a URI/],
    ['http://example.com/', /unknown scheme "http"/],
    ['nbd:///disk', /no host/],
    ['nbd://host:66000/', /port 66000/],
    ['nbd+unix:///disk', /no socket/],
    ['nbd+unix:///disk?socket=', /no socket/],
    ['nbd://host/?socket=/x', /needs nbd\+unix/],
    ['nbd://host/%zz', /percent/],
    ['nbd://host/?volume=x', /unknown parameter "volume"/],
    ['nbds+unix:///disk', /no socket/],
    ['nbds://host/?tls-type=anon', /unknown parameter "tls-type"/],
  ])('refuses %s', (uri, message) => {
    expect(() => parseNbdUri(uri)).toThrow(message);
  });

  it.each([
    'nbds://alice:0123456789@h/x',
    'nbds://alice:0123456789@h:port/x',
    'nbd://:0123456789@h/x',
    'nbds+unix://a:0123456789@/x',
  ])('refuses a password without showing it: %s', (uri) => {
    expect(() => parseNbdUri(uri)).toThrow(/^(?!.*0123456789)/);
    expect(() => parseNbdUri(uri)).toThrow(/keys are in files/);
  });

  it('reads what it writes', () => {
    const address = fc.oneof(
      fc.record({ kind: fc.constant('unix' as const), path: fc.string({ minLength: 1, unit: 'binary' }) }),
      fc.record({
        kind: fc.constant('tcp' as const),
        host: fc.constantFrom('example.com', '127.0.0.1', '::1', 'fe80::1'),
        port: fc.integer({ min: 1, max: 65535 }),
      }),
    );
    const text = fc.string({ minLength: 1, unit: 'binary' });
    const tls = fc.record({ pskName: text, certificates: text, psk: text, hostname: text }, { requiredKeys: [] });
    const exportName = fc.string({ unit: 'binary' });
    const uri = fc.record({ address, exportName, tls }, { requiredKeys: ['address', 'exportName'] });
    fc.assert(
      fc.property(uri, (one) => {
        expect(parseNbdUri(formatNbdUri(one))).toEqual(one);
      }),
    );
  });
});
