/** A real daemon in a directory of its own, driven through its command line. */

import { execFile, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const BLKSNAP = path.resolve(import.meta.dirname, '../../bin/blksnap');

export class DaemonUnderTest {
  readonly directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-system-'));
  #process: ChildProcess | null = null;

  /** Starts the daemon and waits until it serves. */
  async start(...options: string[]): Promise<void> {
    await this.startIn(process.cwd(), ...options);
  }

  /** With another working directory. */
  async startIn(cwd: string, ...options: string[]): Promise<void> {
    const words = ['daemon', '--dir', this.state, ...options];
    const child = spawn(BLKSNAP, words, { cwd, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#process = child;
    let said = '';
    await new Promise<void>((resolve, reject) => {
      const hear = (data: Buffer): void => {
        said += data.toString();
        if (said.includes('"msg":"ready"')) resolve();
      };
      child.stdout.on('data', hear);
      child.stderr.on('data', hear);
      child.once('exit', (code) => reject(new Error(`the daemon ended with ${code}: ${said}`)));
    });
  }

  get state(): string {
    return path.join(this.directory, 'state');
  }

  path(name: string): string {
    return path.join(this.directory, name);
  }

  /** Runs a blksnap command and returns what it prints. Rejects with its message when it fails. */
  async cli(...words: string[]): Promise<string> {
    return (await run(BLKSNAP, words, { env: { ...process.env, BLKSNAP_DIR: this.state }, maxBuffer: 64e6 })).stdout;
  }

  async json<T>(...words: string[]): Promise<T> {
    return JSON.parse(await this.cli(...words, '--json')) as T;
  }

  /** A file of random bytes with holes, attached under its name. Returns its path. */
  async disk(name: string, size: number): Promise<string> {
    const file = this.path(`${name}.img`);
    fs.writeFileSync(file, '');
    fs.truncateSync(file, size);
    const fd = fs.openSync(file, 'r+');
    const noise = Buffer.from(Array.from({ length: 65_536 }, (_, i) => (i * 7919 + (i >> 8)) & 0xff));
    for (let at = 0; at < size; at += 4 * noise.length)
      fs.writeSync(fd, noise, 0, Math.min(noise.length, size - at), at);
    fs.closeSync(fd);
    await this.cli('attach', file, '--name', name);
    return file;
  }

  /** URI of an export, for libnbd, fio and qemu. */
  uri(exportName: string): string {
    return `nbd+unix:///${encodeURIComponent(exportName)}?socket=${path.join(this.state, 'nbd.sock')}`;
  }

  /** Ends the daemon with a signal and resolves with its exit code. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> {
    const child = this.#process;
    if (child === null || child.exitCode !== null || child.signalCode !== null) return null;
    child.removeAllListeners('exit');
    const ended = new Promise<number | null>((resolve) => child.once('exit', resolve));
    child.kill(signal);
    return await ended;
  }

  /** Ends everything and removes the directory. */
  async dispose(): Promise<void> {
    await this.stop('SIGKILL');
    fs.rmSync(this.directory, { recursive: true, force: true });
  }
}

/** fio against an NBD export; resolves with its exit code and output when it ends. */
export function fio(
  uri: string,
  ...options: string[]
): { process: ChildProcess; ended: Promise<{ code: number | null; output: string }> } {
  const words = ['--name=job', '--ioengine=nbd', `--uri=${uri}`, ...options];
  const child = spawn('fio', words, { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  child.stdout.on('data', (data: Buffer) => (output += data.toString()));
  child.stderr.on('data', (data: Buffer) => (output += data.toString()));
  return { process: child, ended: new Promise((resolve) => child.once('exit', (code) => resolve({ code, output }))) };
}
