import { describe, expect, it } from 'vitest';
import { daemonPaths } from './paths.ts';

describe('daemonPaths', () => {
  it('keeps all in the directory that was given', () => {
    const paths = daemonPaths('/x/y', { BLKSNAP_DIR: '/elsewhere' });
    expect(paths).toMatchObject({ run: '/x/y', state: '/x/y', apiSocket: '/x/y/api.sock', cbt: '/x/y/cbt' });
  });

  it('takes BLKSNAP_DIR when nothing is given', () => {
    expect(daemonPaths(undefined, { BLKSNAP_DIR: '/elsewhere' }).apiSocket).toBe('/elsewhere/api.sock');
  });

  it('makes a relative directory absolute, since the socket is found from anywhere', () => {
    expect(daemonPaths('here').run).toBe(`${process.cwd()}/here`);
  });

  it('has a place by convention', () => {
    const env = { XDG_RUNTIME_DIR: '/run/user/1', XDG_STATE_HOME: '/home/u/.state' };
    const { run, state } = daemonPaths(undefined, env);
    if (process.getuid?.() === 0) expect([run, state]).toEqual(['/run/blksnap', '/var/lib/blksnap']);
    else expect([run, state]).toEqual(['/run/user/1/blksnap', '/home/u/.state/blksnap']);
  });

  it('refuses a directory whose socket path no system takes', () => {
    expect(() => daemonPaths(`/${'d'.repeat(120)}`)).toThrow(/give a shorter --dir/);
  });
});
