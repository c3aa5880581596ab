import { describe, expect, it } from 'vitest';
import { isLocal, parseHostPort } from './address.ts';

describe('NBD addresses', () => {
  it.each([
    ['127.0.0.1:10809', '127.0.0.1', 10809],
    ['[::1]:1', '::1', 1],
    [':10809', '0.0.0.0', 10809],
    ['nas.lan:0', 'nas.lan', 0],
  ])('reads %s', (text, host, port) => {
    expect(parseHostPort(text)).toEqual({ kind: 'tcp', host, port });
  });

  it.each(['', 'host', 'host:', 'host:port', '::1:10809', 'host:70000', 'host:123456'])('refuses "%s"', (text) => {
    expect(() => parseHostPort(text)).toThrow(/want host:port/);
  });

  it('knows what only this machine can reach', () => {
    expect(isLocal(parseHostPort('127.0.0.1:1'))).toBe(true);
    expect(isLocal(parseHostPort(':1'))).toBe(false);
    expect(isLocal(parseHostPort('192.0.2.1:1'))).toBe(false);
  });
});
