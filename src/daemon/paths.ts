/** Where a daemon keeps what: its sockets and lock (run), and what outlives it (state).
 *  With `--dir` both are one directory. Makes nothing; reads nothing but the environment. */

import os from 'node:os';
import path from 'node:path';
import { BlksnapError } from '../util/errors.ts';

export interface DaemonPaths {
  /** Sockets and lock. Names the daemon in messages. */
  readonly run: string;
  /** State file, change history. */
  readonly state: string;
  readonly apiSocket: string;
  readonly nbdSocket: string;
  readonly lockFile: string;
  readonly stateFile: string;
  /** Change histories, one file per disk: `<name>.map`. */
  readonly cbt: string;
  /** Journals of persistent snapshots: `<id>.journal`. Made with the first of them. */
  readonly snapshots: string;
}

/** sockaddr_un has room for so many bytes and a zero (Linux 108, macOS 104 in all). */
const SOCKET_PATH_BYTES = 103;

/** `dir` is what the user gave, if anything; then BLKSNAP_DIR; then the place by convention.
 *  Errors: ENAMETOOLONG when a socket would not fit. */
export function daemonPaths(dir?: string, env: NodeJS.ProcessEnv = process.env): DaemonPaths {
  const given = dir ?? env['BLKSNAP_DIR'];
  const { run, state } = given === undefined || given === '' ? conventional(env) : both(path.resolve(given));
  const apiSocket = path.join(run, 'api.sock');
  if (Buffer.byteLength(apiSocket) > SOCKET_PATH_BYTES) {
    throw new BlksnapError(
      'ENAMETOOLONG',
      `Cannot use directory "${run}": the path of its socket has ${Buffer.byteLength(apiSocket)} bytes, ` +
        `the system allows ${SOCKET_PATH_BYTES}; give a shorter --dir`,
    );
  }
  return {
    run,
    state,
    apiSocket,
    nbdSocket: path.join(run, 'nbd.sock'),
    lockFile: path.join(run, 'daemon.lock'),
    stateFile: path.join(state, 'state.json'),
    cbt: path.join(state, 'cbt'),
    snapshots: path.join(state, 'snapshots'),
  };
}

function both(dir: string): { run: string; state: string } {
  return { run: dir, state: dir };
}

function conventional(env: NodeJS.ProcessEnv): { run: string; state: string } {
  if (process.getuid?.() === 0) return { run: '/run/blksnap', state: '/var/lib/blksnap' };
  const state = path.join(env['XDG_STATE_HOME'] || path.join(os.homedir(), '.local', 'state'), 'blksnap');
  const runtime = env['XDG_RUNTIME_DIR'];
  // Without a runtime directory (no login session) the sockets live beside the state.
  return { run: runtime ? path.join(runtime, 'blksnap') : path.join(state, 'run'), state };
}
