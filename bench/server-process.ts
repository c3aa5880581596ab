/** A server under measurement: a child process (or a daemon that one leaves behind) that is ready once its unix
 *  socket takes connections, and that is ended by its process id. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const READY_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 10_000;

export interface ServerProcess {
  readonly pid: number;
  /** From the start of the process to the first connection taken. */
  readonly startMs: number;
  stop(): Promise<void>;
}

async function accepts(socketPath: string): Promise<boolean> {
  const socket = net.connect(socketPath);
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}

/** Starts `command` and resolves when `socketPath` takes connections. Rejects with what the program said
 *  when it ends before that, or takes too long. */
export async function startServer(
  command: string,
  args: readonly string[],
  socketPath: string,
): Promise<ServerProcess> {
  const began = performance.now();
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let said = '';
  const listen = (data: Buffer): void => {
    said = (said + data.toString()).slice(-2000);
  };
  child.stdout.on('data', listen);
  child.stderr.on('data', listen);
  let failure: Error | undefined;
  child.on('error', (error) => (failure = error));
  const ended = (): boolean => failure !== undefined || child.exitCode !== null || child.signalCode !== null;
  const stop = async (): Promise<void> => {
    if (ended()) return;
    const exit = once(child, 'exit');
    child.kill('SIGTERM');
    const late = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    await exit;
    clearTimeout(late);
  };

  while (!(await accepts(socketPath))) {
    if (ended() || performance.now() - began > READY_TIMEOUT_MS) {
      await stop();
      throw new Error(`${command} ${args.join(' ')}: not ready: ${failure?.message ?? said.trim()}`);
    }
    await sleep(5);
  }
  return { pid: child.pid!, startMs: performance.now() - began, stop };
}

/** As startServer, for a program that ends at once and leaves a daemon, whose process id it writes to a file. */
export async function startForkingServer(
  command: string,
  args: readonly string[],
  { pidFile, socketPath }: { readonly pidFile: string; readonly socketPath: string },
): Promise<ServerProcess> {
  const began = performance.now();
  spawn(command, args, { stdio: 'ignore' });
  while (!fs.existsSync(pidFile) || fs.readFileSync(pidFile, 'utf8').trim() === '' || !(await accepts(socketPath))) {
    if (performance.now() - began > READY_TIMEOUT_MS) throw new Error(`${command} ${args.join(' ')}: not ready`);
    await sleep(5);
  }
  const pid = Number(fs.readFileSync(pidFile, 'utf8'));
  const stop = async (): Promise<void> => {
    process.kill(pid, 'SIGTERM');
    const late = performance.now() + STOP_TIMEOUT_MS;
    while (alive(pid) && performance.now() < late) await sleep(10);
  };
  return { pid, startMs: performance.now() - began, stop };
}

/** A zombie that nobody fetches is as good as gone. */
function alive(pid: number): boolean {
  try {
    return !/^State:\s*Z/m.test(fs.readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}
