/** The demo's other processes: the daemon, the writer, and single blksnap commands. What was started is ended by
 *  its process id. */

import { execFile, fork, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import type { ByteRange } from './disk.ts';
import type { Latency } from './latency.ts';
import type { FromWriter, ToWriter } from './writer.ts';

const BLKSNAP = path.join(import.meta.dirname, '../bin/blksnap');
const READY_TIMEOUT_MS = 15_000;
const STOP_TIMEOUT_MS = 10_000;
const MAX_OUTPUT_BYTES = 64 * 1024 * 1024;

export interface Stoppable {
  stop(): Promise<void>;
}

export interface Writer extends Stoppable {
  /** Counts what comes from now on to this phase. */
  phase(name: string): void;
  /** Ends the writer; resolves with the latencies of each phase. */
  finish(): Promise<Readonly<Record<string, Latency>>>;
}

/** Runs `blksnap ARGS --json` and returns what it printed. Rejects with what it complained about. */
export async function blksnap(dir: string, args: readonly string[]): Promise<unknown> {
  const all = [...args, '--dir', dir, '--json'];
  const { stdout } = await promisify(execFile)(BLKSNAP, all, { maxBuffer: MAX_OUTPUT_BYTES });
  return JSON.parse(stdout);
}

function isOver(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

/** Resolves when the process has ended; kills it when it takes too long. */
async function ended(child: ChildProcess): Promise<void> {
  if (isOver(child)) return;
  const late = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
  await once(child, 'exit');
  clearTimeout(late);
}

async function stop(child: ChildProcess): Promise<void> {
  if (!isOver(child)) child.kill('SIGTERM');
  await ended(child);
}

/** Starts a daemon, and resolves when it answers. */
export async function startDaemon(dir: string): Promise<Stoppable> {
  const child = spawn(BLKSNAP, ['daemon', '--dir', dir], { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.on('data', (data: Buffer) => (said = (said + data.toString()).slice(-4000)));
  const deadline = performance.now() + READY_TIMEOUT_MS;
  for (;;) {
    try {
      await blksnap(dir, ['status']);
      return { stop: () => stop(child) };
    } catch (cause) {
      if (isOver(child) || performance.now() > deadline) {
        await stop(child);
        throw new Error(`the daemon does not answer: ${said}`, { cause });
      }
      await sleep(50);
    }
  }
}

/** Starts the writer, and resolves when it is connected. */
export async function startWriter(uri: string, places: readonly ByteRange[]): Promise<Writer> {
  const child = fork(path.join(import.meta.dirname, 'writer.ts'), [uri, JSON.stringify(places)], {
    execArgv: ['--import', 'tsx'],
  });
  const tell = (message: ToWriter): void => void child.send(message);
  let phases: Readonly<Record<string, Latency>> | undefined;
  const ready = new Promise<void>((resolve, reject) => {
    child.on('message', (message: FromWriter) => {
      if ('phases' in message) phases = message.phases;
      else resolve();
    });
    child.on('exit', (status) => reject(new Error(`the writer ended before it was connected, with ${status}`)));
  });
  await ready;
  return {
    phase: (name) => tell({ phase: name }),
    finish: async () => {
      tell({ end: true });
      await ended(child);
      if (phases === undefined || child.exitCode !== 0) throw new Error(`the writer ended with ${child.exitCode}`);
      return phases;
    },
    stop: () => stop(child),
  };
}
