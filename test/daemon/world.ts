/** A daemon in a process of its own, and the command line to speak to it with, as a person has them: the built
 *  program. What a test starts is ended by its process id. */

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from '../../src/api/client.ts';
import { BioPool, FLUSH, WRITE, runBio } from '../../src/block/bio.ts';
import { openReactor } from '../../src/io/open.ts';
import { NbdClient } from '../../src/nbd/client.ts';
import { parseNbdUri } from '../../src/nbd/uri.ts';
import { assert } from '../../src/util/assert.ts';
import { MIB } from '../../src/util/units.ts';

const BLKSNAP = path.join(import.meta.dirname, '../../bin/blksnap');
const READY_TIMEOUT_MS = 240_000;
const STOP_TIMEOUT_MS = 60_000;

export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A blksnap process and what it has said so far. */
export class Program {
  readonly child: ChildProcess;
  stdout = '';
  stderr = '';
  readonly #ended: Promise<unknown>;

  constructor(args: readonly string[]) {
    this.child = spawn(process.execPath, [BLKSNAP, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    this.child.stdout!.on('data', (data: Buffer) => (this.stdout += data.toString()));
    this.child.stderr!.on('data', (data: Buffer) => (this.stderr += data.toString()));
    this.#ended = once(this.child, 'close');
  }

  get running(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  async ended(): Promise<Outcome> {
    await this.#ended;
    return { code: this.child.exitCode, stdout: this.stdout, stderr: this.stderr };
  }

  async signal(signal: NodeJS.Signals): Promise<Outcome> {
    if (this.running) this.child.kill(signal);
    return await this.ended();
  }
}

/** Runs blksnap to its end. */
export async function blksnap(...args: readonly string[]): Promise<Outcome> {
  return await new Program(args).ended();
}

export class DaemonWorld {
  readonly directory = fs.mkdtempSync(path.join(os.tmpdir(), 'blksnap-daemon-'));
  /** The daemon's --dir. */
  readonly dir = path.join(this.directory, 'd');
  readonly client = new Client({ dir: this.dir });
  daemon: Program | null = null;

  file(name: string): string {
    return path.join(this.directory, name);
  }

  /** A sparse image, with `dataBytes` of something at its start. */
  image(name: string, size: number, dataBytes = 0): string {
    const file = this.file(name);
    const fd = fs.openSync(file, 'w');
    fs.ftruncateSync(fd, size);
    const piece = Buffer.alloc(MIB);
    for (let i = 0; i < MIB; i += 4) piece.writeUInt32LE(Math.imul(i + 1, 2_654_435_761) >>> 0, i);
    for (let at = 0; at < dataBytes; at += MIB) {
      piece.writeUInt32LE(at / MIB, 0);
      fs.writeSync(fd, piece, 0, Math.min(MIB, dataBytes - at), at);
    }
    fs.closeSync(fd);
    return file;
  }

  /** Starts the daemon; resolves when it answers. */
  async start(...args: readonly string[]): Promise<void> {
    const daemon = new Program(['daemon', '--dir', this.dir, ...args]);
    this.daemon = daemon;
    const deadline = performance.now() + READY_TIMEOUT_MS;
    for (;;) {
      try {
        const { pid } = await this.client.status();
        assert(pid === daemon.child.pid, 'the daemon that answers is this one');
        return;
      } catch (cause) {
        if (!daemon.running || performance.now() > deadline) throw new Error(`no daemon: ${daemon.stderr}`, { cause });
        await sleep(10);
      }
    }
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<Outcome> {
    assert(this.daemon !== null, 'the daemon was started');
    return await this.daemon.signal(signal);
  }

  async cli(...args: readonly string[]): Promise<Outcome> {
    return await blksnap(...args, '--dir', this.dir);
  }

  /** Runs a command that must succeed, and returns the JSON that it printed. */
  async json(...args: readonly string[]): Promise<Record<string, unknown>> {
    const { code, stdout, stderr } = await this.cli(...args, '--json');
    if (code !== 0) throw new Error(`blksnap ${args.join(' ')}: exit code ${code}: ${stderr}`);
    return JSON.parse(stdout) as Record<string, unknown>;
  }

  async close(): Promise<void> {
    // A daemon that does not end by itself must not outlive its test.
    const late = setTimeout(() => this.daemon?.child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    if (this.daemon?.running === true) await this.stop();
    clearTimeout(late);
    fs.rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Writes `length` bytes of one value to an export, and flushes. */
export async function fill(uri: string, offset: number, length: number, value: number): Promise<void> {
  const reactor = await openReactor({ driver: 'portable', arenaBytes: 8 * MIB });
  const pool = new BioPool();
  const device = await NbdClient.connect({ reactor, ...parseNbdUri(uri) });
  const at = reactor.arena.allocate(MIB);
  reactor.arena.bytes.fill(value, at, at + MIB);
  try {
    for (let done = 0; done < length; done += MIB) {
      const io = { op: WRITE, offset: offset + done, length: Math.min(MIB, length - done), at } as const;
      const status = await runBio(pool, device, io);
      if (status !== 0) throw new Error(`the write at ${io.offset} ended with errno ${status}`);
    }
    await runBio(pool, device, { op: FLUSH, offset: 0, length: 0 });
  } finally {
    reactor.arena.release(at);
    await device.close();
    await reactor.close();
  }
}

export function sameFiles(one: string, other: string): boolean {
  return fs.readFileSync(one).equals(fs.readFileSync(other));
}
