/** The demo's other processes: the daemon, the writer, and single blksnap commands. What was started is ended by
 *  its process id, however the demo ends. */

import { execFile, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { ROOT } from '../prepare.mjs';

const BLKSNAP = path.join(ROOT, 'bin/blksnap');
const READY_TIMEOUT_MS = 15_000;
const STOP_TIMEOUT_MS = 10_000;

/** @typedef {{ writes: number, p50Us: number, p99Us: number, maxUs: number }} Latency */

/** Runs `blksnap ARGS --json` and returns what it printed.
 *  @param {string} dir the daemon's directory
 *  @param {readonly string[]} args
 *  @returns {Promise<any>} */
export async function blksnap(dir, args) {
  const { stdout } = await promisify(execFile)(BLKSNAP, [...args, '--dir', dir, '--json'], { maxBuffer: 2 ** 26 });
  return JSON.parse(stdout);
}

/** Resolves when the process has ended; kills it when it does not end by itself.
 *  @param {import('node:child_process').ChildProcess} child */
async function ended(child) {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const late = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
  await once(child, 'exit');
  clearTimeout(late);
}

/** Starts a daemon, and resolves with a way to end it when it answers.
 *  @param {string} dir */
export async function startDaemon(dir) {
  const child = spawn(BLKSNAP, ['daemon', '--dir', dir], { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.on('data', (/** @type {Buffer} */ data) => (said = (said + data.toString()).slice(-4000)));
  const stop = async () => {
    child.kill('SIGTERM');
    await ended(child);
  };
  const deadline = performance.now() + READY_TIMEOUT_MS;
  for (;;) {
    try {
      await blksnap(dir, ['status']);
      return { stop };
    } catch (cause) {
      if (child.exitCode !== null || performance.now() > deadline) {
        await stop();
        throw new Error(`the daemon does not answer: ${said}`, { cause });
      }
      await sleep(50);
    }
  }
}

/** Starts the writer, and resolves when it is connected.
 *  @param {string} uri
 *  @param {readonly import('./disk.mjs').ByteRange[]} places */
export async function startWriter(uri, places) {
  const child = fork(path.join(import.meta.dirname, 'writer.mjs'), [uri, JSON.stringify(places)]);
  /** @type {Record<string, Latency> | undefined} */
  let phases;
  child.on('message', (/** @type {{ phases?: Record<string, Latency> }} */ message) => {
    phases = message.phases ?? phases;
  });
  await Promise.race([
    once(child, 'message'),
    once(child, 'exit').then(() => Promise.reject(new Error('the writer ended at its start'))),
  ]);
  return {
    /** Counts what comes from now on to this phase. @param {string} name */
    phase: (name) => void child.send({ phase: name }),
    /** Ends the writer; resolves with the latencies of each phase. */
    async finish() {
      child.send({ end: true });
      await ended(child);
      if (phases === undefined || child.exitCode !== 0)
        throw new Error(`the writer failed: exit status ${child.exitCode}`);
      return phases;
    },
    async stop() {
      child.kill('SIGTERM');
      await ended(child);
    },
  };
}
