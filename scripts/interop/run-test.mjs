/** Runs one test of a suite with the stand-ins in the place of its servers (stand-ins/serve.sh), and says what came of
 *  it. A test that fails with ours is run again with its own server: what fails there too tells nothing about ours. */

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import { ROOT } from '../prepare.mjs';

const LIMIT_SECONDS = 600;
/** For what cannot pass: some of that waits for ever. */
const KNOWN_LIMIT_SECONDS = 60;

/** @typedef {{ name: string, cwd: string, command: readonly string[], env?: NodeJS.ProcessEnv,
 *    skipped?: (status: number, output: string) => string | null }} SuiteTest
 *  @typedef {'passed' | 'failed' | 'known' | 'skipped' | 'elsewhere' | 'unrelated' | 'both fail'} Verdict
 *  @typedef {{ name: string, verdict: Verdict, reason: string, output: string }} Outcome */

/** Ends the servers that a test has left.
 *  @param {readonly string[]} notes */
function endServers(notes) {
  for (const pid of notes.flatMap((note) => /^pid: (\d+)$/.exec(note)?.[1] ?? [])) {
    const commandLine = `/proc/${pid}/cmdline`;
    if (existsSync(commandLine) && readFileSync(commandLine, 'utf8').includes('blksnap')) {
      process.kill(Number(pid), 'SIGKILL');
    }
  }
}

/** @param {SuiteTest} test
 *  @param {{ standIn: boolean, limitSeconds?: number }} options */
function runOnce(test, { standIn, limitSeconds = LIMIT_SECONDS }) {
  const dir = mkdtempSync(path.join(os.tmpdir(), 'blksnap-interop-'));
  const note = path.join(dir, 'note');
  writeFileSync(note, '');
  mkdirSync(path.join(dir, 'images'));
  const env = {
    ...process.env,
    ...test.env,
    INTEROP_ROOT: ROOT,
    INTEROP_NOTE: note,
    INTEROP_TMP: path.join(dir, 'images'),
    ...(standIn ? {} : { INTEROP_OTHER: '1' }),
  };
  // A network of its own: the suites' ports are fixed.
  const isolated = [
    '--net',
    'sh',
    '-c',
    'ip link set lo up; exec "$@"',
    'sh',
    'timeout',
    '-k',
    '5',
    String(limitSeconds),
  ];
  const result = spawnSync('unshare', [...isolated, ...test.command], {
    cwd: test.cwd,
    env,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const notes = readFileSync(note, 'utf8').trim().split('\n');
  endServers(notes);
  rmSync(dir, { recursive: true });
  return { status: result.status ?? 1, output: `${result.stdout}${result.stderr}`, notes };
}

/** @param {SuiteTest} test
 *  @param {ReadonlyMap<string, string>} known why a test cannot pass, by its name
 *  @returns {Outcome} */
export function runSuiteTest(test, known) {
  const limitSeconds = known.has(test.name) ? KNOWN_LIMIT_SECONDS : LIMIT_SECONDS;
  const { status, output, notes } = runOnce(test, { standIn: true, limitSeconds });
  /** @param {Verdict} verdict
   *  @param {string} [reason] */
  const outcome = (verdict, reason = '') => ({ name: test.name, verdict, reason, output });
  const ours = notes.some((note) => note.startsWith('ours: '));
  const others = notes.filter((note) => note.startsWith('other: '));
  const skipped = test.skipped?.(status, output) ?? null;
  if (skipped !== null) return outcome('skipped', skipped);
  if (!ours) {
    if (others.length === 0) return outcome('unrelated');
    return outcome('elsewhere', others[0]?.replace(/^other: /, ''));
  }
  if (status === 0) {
    return known.has(test.name) ? outcome('failed', 'passes, but is listed as known to fail') : outcome('passed');
  }
  const reason = known.get(test.name);
  if (reason !== undefined) return outcome('known', reason);
  if (runOnce(test, { standIn: false }).status !== 0) return outcome('both fail', 'fails here with its own server too');
  return outcome('failed', status === 124 ? `not over after ${LIMIT_SECONDS} s` : `exit status ${status}`);
}
