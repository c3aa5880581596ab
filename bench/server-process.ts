/** A server under measurement: a child process that is ready once its unix socket takes connections, and
 *  that is ended by its process id. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const READY_TIMEOUT_MS = 15_000;
const STOP_TIMEOUT_MS = 10_000;

export interface ServerProcess {
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

  const deadline = performance.now() + READY_TIMEOUT_MS;
  while (!(await accepts(socketPath))) {
    if (ended() || performance.now() > deadline) {
      await stop();
      throw new Error(`${command} ${args.join(' ')}: not ready: ${failure?.message ?? said.trim()}`);
    }
    await sleep(20);
  }
  return { stop };
}
