/** A mounted volume under load, a daemon that may be killed at a step of its choice, and what must hold afterwards. */

import { execFileSync, spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Client } from '../../src/api/client.ts';
import type { DiskView } from '../../src/api/client.ts';
import { DaemonUnderTest } from '../system/daemon-under-test.ts';

/** A call of dmsetup, and when around it the daemon is to die. */
export interface DeathPoint {
  readonly command: 'create' | 'load' | 'resume' | 'clear' | 'remove';
  readonly when: 'before' | 'after';
}

/** A dmsetup that kills its caller at a point, once. There only until then: it takes as long as dmsetup itself. */
const dmsetupThatKills = ({ command, when }: DeathPoint): string => `#!/bin/sh
[ $1 = ${command} ] || exec /sbin/dmsetup "$@"
rm "$0"
${when === 'after' ? '/sbin/dmsetup "$@"' : ''}
kill -9 $PPID
`;

const WAIT_MS = 50;
/** What fio's verify puts at the start of each block that it writes. */
const FIO_MAGIC = 0xacca;
const FIO_BLOCK = 4096;
/** Blocks that a load has written at least when it is ended. */
const LEAST_BLOCKS = 16;

export function run(program: string, ...args: readonly string[]): string {
  return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

function pipe(input: string, program: string, ...args: readonly string[]): string {
  return execFileSync(program, args, { encoding: 'utf8', input, stdio: ['pipe', 'pipe', 'pipe'] });
}

/** A file system of a volume: how it is made, mounted and checked. */
export interface FileSystem {
  readonly mkfs: readonly string[];
  readonly fsck: readonly string[];
  /** Options for a second one of its UUID. */
  readonly twice: readonly string[];
}

export const EXT4: FileSystem = {
  mkfs: ['mkfs.ext4', '-q', '-F', '-b', '1024', '-E', 'lazy_itable_init=0,lazy_journal_init=0'],
  fsck: ['fsck.ext4', '-fn'],
  twice: [],
};
export const XFS: FileSystem = {
  mkfs: ['mkfs.xfs', '-q', '-f'],
  fsck: ['xfs_repair', '-n'],
  twice: ['-o', 'nouuid'],
};

/** How a volume is made: by this table, or as the function does it. */
type Making = string | ((volume: string) => void);

/** What live attach takes of the kernel; /dev/ram0 to /dev/ram3 are there then. */
export function loadModules(): void {
  for (const name of ['nbd', 'dm-mod']) run('modprobe', name);
  if (!fs.existsSync('/dev/ram0')) run('modprobe', 'brd', 'rd_nr=4', `rd_size=${320 * 1024}`);
}

export class LiveWorld {
  readonly daemon = new DaemonUnderTest();
  readonly client = new Client({ dir: this.daemon.state });
  readonly volume: string;
  readonly place: string;
  readonly fileSystem: FileSystem;
  /** Found before the real dmsetup, while a death is due. */
  readonly #killer: string;
  #mounted = false;
  #loads = 0;

  /** Makes the volume, and a file system on it. */
  constructor(volume: string, making: Making, fileSystem: FileSystem = EXT4) {
    this.volume = volume;
    this.fileSystem = fileSystem;
    this.place = this.daemon.path('mnt');
    const bin = this.daemon.path('bin');
    for (const directory of [this.place, bin]) fs.mkdirSync(directory);
    this.#killer = path.join(bin, 'dmsetup');
    process.env['PATH'] = `${bin}:${process.env['PATH']}`;
    if (typeof making === 'string') pipe(making, '/sbin/dmsetup', 'create', volume);
    else making(volume);
    this.mount();
  }

  get device(): string {
    return `/dev/mapper/${this.volume}`;
  }

  mount(): void {
    run('/sbin/dmsetup', 'mknodes');
    const [mkfs, ...options] = this.fileSystem.mkfs;
    run(mkfs!, ...options, this.device);
    run('mount', '-o', 'noatime', this.device, this.place);
    this.#mounted = true;
  }

  /** Starts the daemon. What it keeps lies in the machine's memory. */
  start(): Promise<void> {
    return this.daemon.start('--storage-portion', '16M');
  }

  /** As dmsetup prints it, keys and all. */
  table(name = this.volume): string {
    return run('/sbin/dmsetup', 'table', '--showkeys', name);
  }

  /** Names of all device-mapper devices. */
  mappings(): string[] {
    const lines = run('/sbin/dmsetup', 'ls').split('\n');
    return lines.flatMap((line) => (line.includes('(') ? [line.split(/\s/)[0]!] : []));
  }

  isSuspended(): boolean {
    return run('/sbin/dmsetup', 'info', '-c', '--noheadings', '-o', 'suspended', this.volume).trim() === 'Suspended';
  }

  /** The daemon dies at the next such call, unless it is asked to die elsewhere before. */
  dieAt(point: DeathPoint): void {
    fs.writeFileSync(this.#killer, dmsetupThatKills(point), { mode: 0o755 });
  }

  /** Whether a death that was asked for has happened. */
  get hasDied(): boolean {
    return !fs.existsSync(this.#killer);
  }

  /** No death is due any more. */
  spare(): void {
    fs.rmSync(this.#killer, { force: true });
  }

  attach(): Promise<DiskView> {
    return this.client.attach({ path: this.device });
  }

  /** Writes and verifies, in a loop, until it is ended. */
  load(): Load {
    return new Load(this.place, this.daemon.path(`load-${this.#loads++}`));
  }

  /** Unmounts, and has the file system checked. */
  check(): void {
    run('umount', this.place);
    this.#mounted = false;
    const [fsck, ...options] = this.fileSystem.fsck;
    run(fsck!, ...options, this.device);
  }

  async dispose(): Promise<void> {
    if (this.#mounted) run('umount', '--lazy', this.place);
    await this.daemon.stop();
    await this.daemon.dispose();
    const ours = this.mappings().filter((name) => name === this.volume || name.startsWith('blksnap-'));
    for (const name of ours) run('/sbin/dmsetup', 'remove', '--force', name);
  }
}

/** fio on a mounted file system: every block that it reads back must be what it wrote. */
class Load {
  readonly #process: ChildProcess;
  readonly #ended: Promise<string>;
  /** Is there before its first write. */
  readonly #mark: string;
  readonly #file: string;

  constructor(place: string, mark: string) {
    this.#mark = mark;
    this.#file = path.join(place, 'load.0.0');
    const job = ['--name=load', `--directory=${place}`, '--size=512k', '--rw=randwrite', '--bs=4k', '--direct=1'];
    const verify = [
      '--verify=crc32c',
      '--verify_fatal=1',
      '--loops=100000',
      // Not by --rate_iops: fio spins for the time between two requests, and the machine has but one processor.
      '--thinktime=300ms',
      '--thinktime_blocks=16',
      '--output-format=json',
      `--exec_prerun=touch ${mark}`,
    ];
    const child = spawn('fio', [...job, ...verify], { stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    child.stdout.on('data', (data: Buffer) => (output += data.toString()));
    child.stderr.on('data', (data: Buffer) => (output += data.toString()));
    this.#process = child;
    this.#ended = new Promise((resolve) => child.once('close', () => resolve(output)));
  }

  get isRunning(): boolean {
    return this.#process.exitCode === null && this.#process.signalCode === null;
  }

  get #isUnderWay(): boolean {
    if (!fs.existsSync(this.#mark) || !fs.existsSync(this.#file)) return false;
    const bytes = fs.readFileSync(this.#file);
    let written = 0;
    for (let at = 0; at + FIO_BLOCK <= bytes.length; at += FIO_BLOCK)
      if (bytes.readUInt16LE(at) === FIO_MAGIC) written++;
    return written >= LEAST_BLOCKS;
  }

  /** Rejects when a write failed, or a read gave something else; resolves with how many writes there were. */
  async end(): Promise<number> {
    if (!this.isRunning) throw new Error(`fio ended by itself: ${await this.#ended}`);
    while (!this.#isUnderWay && this.isRunning) await sleep(WAIT_MS);
    this.#process.kill('SIGINT');
    const output = await this.#ended;
    const report = JSON.parse(output.slice(output.indexOf('\n{'), output.lastIndexOf('}') + 1)) as FioReport;
    const [job] = report.jobs;
    if (job === undefined || job.error !== 0 || job.write.total_ios === 0) throw new Error(`fio found: ${output}`);
    return job.write.total_ios;
  }
}

interface FioReport {
  readonly jobs: ReadonlyArray<{ readonly error: number; readonly write: { readonly total_ios: number } }>;
}
